//! Records added up: who copied how much, in which mappings, by which code, and why. Computes; neither reads nor prints.
