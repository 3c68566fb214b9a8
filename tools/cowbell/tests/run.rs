//! `cowbell run` and `cowbell attach` over programs whose copies are known, or were counted by somebody else.
//!
//! The truth comes from three sides: a program that does what a script says and a model of what Linux must do then
//! (`model`), page frames as that program itself saw them, and other people's counters (taskstats, smaps, Redis).

#[path = "run/account.rs"]
mod account;
#[path = "run/allocators.rs"]
mod allocators;
#[path = "run/bounds.rs"]
mod bounds;
#[path = "run/case.rs"]
mod case;
#[path = "run/cases.rs"]
mod cases;
#[path = "../src/record/code.rs"]
mod code;
#[path = "run/controlled.rs"]
mod controlled;
#[path = "run/estimates.rs"]
mod estimates;
#[path = "../src/record/event.rs"]
mod event;
#[path = "run/exact.rs"]
mod exact;
#[path = "run/experiments.rs"]
mod experiments;
#[path = "../src/record/fault.rs"]
mod fault;
#[path = "run/faults.rs"]
mod faults;
#[path = "run/first.rs"]
mod first;
#[path = "run/forks.rs"]
mod forks;
#[path = "../src/record/gaps.rs"]
mod gaps;
#[path = "run/images.rs"]
mod images;
#[path = "run/judge.rs"]
mod judge;
#[path = "run/judged.rs"]
mod judged;
#[path = "../src/record/kinds.rs"]
mod kinds;
#[path = "run/kinds.rs"]
mod kinds_of_objects;
#[path = "run/lab.rs"]
mod lab;
#[path = "run/languages.rs"]
mod languages;
#[path = "../src/record/memory.rs"]
#[expect(dead_code, reason = "the record as the tool writes it; no test asks for each sum")]
mod memory;
#[path = "run/model.rs"]
mod model;
#[path = "run/modules.rs"]
mod modules;
#[path = "run/no_line.rs"]
mod no_line;
#[path = "../src/record/objects.rs"]
mod objects;
#[path = "run/perl_php.rs"]
mod perl_php;
#[path = "run/phases.rs"]
mod phases;
#[path = "run/plan.rs"]
mod plan;
#[path = "run/programs.rs"]
mod programs;
#[path = "run/published.rs"]
mod published;
#[path = "run/python.rs"]
mod python;
#[path = "run/r.rs"]
mod r;
#[path = "../src/record/types.rs"]
#[expect(dead_code, unused_imports, reason = "the records as the tool writes them; no test reads every field")]
mod record;
#[path = "run/robust.rs"]
mod robust;
#[path = "run/ruby.rs"]
mod ruby;
#[path = "run/said.rs"]
mod said;
#[path = "run/told.rs"]
mod told;
#[path = "run/untold.rs"]
mod untold;
#[path = "run/verdict.rs"]
mod verdict;
#[path = "run/writing.rs"]
mod writing;
