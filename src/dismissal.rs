//! Ends streams between two messages, and not within one.
//!
//! **Why.** A proxy stops, a stream has grown old, an endpoint leaves its cluster: then streams have to end that nobody is
//! unhappy with. Who finds half a message before the status cannot tell a planned end from a broken one, and an upstream that
//! was cut within a message has to guess what it has.
//!
//! **How.**
//! 1. A [`Group`] knows the streams of something that may go away, and dismisses them all; a single stream is dismissed through
//!    its [`StreamContext`].
//! 2. The [`Upload`] lets the client's current message pass, and nothing behind it. What still comes is dropped without its
//!    credit being given back, so that the client soon stops to send.
//! 3. When the upstream has taken all that passed, the [`Exit`] ends the response behind its current message with the status
//!    of the dismissal, and the upstream's stream is reset. Until then the answer goes on.
//! 4. A message that has not passed whole within `drain.force` is cut. Plain HTTP knows no messages and has just that time.
//!
//! The places where messages begin are only known to who has seen the stream from its start, and so both directions of every
//! gRPC stream are watched. That costs some arithmetic for each message and nothing for its payload.
//!
//! | file | what it holds |
//! |---|---|
//! | [`group`] | streams that end together |
//! | [`upload`] | the request, up to the end of its current message |
//! | [`exit`] | the response, and the decision that it is time |

mod exit;
mod group;
mod upload;

pub(crate) use exit::Exit;
pub(crate) use group::{Group, Member};
pub(crate) use upload::{Progress, Upload};
