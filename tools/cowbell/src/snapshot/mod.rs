//! `cowbell snapshot`: what each process of a tree shares with its parent now. Arms nothing.
