//! Which code: names of instructions, native stacks, Python stacks.
