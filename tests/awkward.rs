//! Awkward clients against the real program: crowds that say nothing, floods, bytes that trickle,
//! hang-ups of every kind, a shortage of descriptors, forged datagrams. Beside them honest clients
//! must be served, byte for byte; how long it took is printed, and no test fails by that alone.

#![allow(clippy::print_stdout, reason = "measurements are for people")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod awkward {
    mod addresses;
    mod churn;
    mod crowds;
    mod datagrams;
    mod descriptors;
    mod endings;
    mod floods;
    mod honest;
    mod kernel;
    mod operators;
    mod pieces;
}
