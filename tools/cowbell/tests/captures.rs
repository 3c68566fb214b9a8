//! Things that are made of captures: budgets, comparisons, pages and files for other programs. Captures are made up here, except
//! where a program is run.

#[path = "captures/browser.rs"]
mod browser;
#[path = "captures/check.rs"]
mod check;
#[path = "captures/diff.rs"]
mod diff;
#[path = "captures/export.rs"]
mod export;
#[path = "captures/formats.rs"]
mod formats;
#[path = "captures/html.rs"]
mod html;
#[path = "captures/kit.rs"]
mod kit;
#[path = "captures/readers.rs"]
mod readers;
#[path = "captures/said.rs"]
mod said;
