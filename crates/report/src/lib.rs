//! Documents made of a drill's facts and verdict. No I/O: whoever calls writes them where they belong.
//!
//! Invariants: nothing is said that the facts do not hold; a cell that does not apply says so and why, and is
//! never empty; NOT RUN and COULD NOT LOOK are printed as such and never as YES.

mod markdown;
mod sections;
mod table;

pub use markdown::markdown;
