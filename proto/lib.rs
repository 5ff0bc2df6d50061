//! Facts of the wire, true of the bytes alone: no I/O, no clock, no runtime.

pub mod deadline;
pub mod field;
pub mod frame;
pub mod method;
pub mod status;
