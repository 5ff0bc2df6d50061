//! Streams that end together.

use std::{cell::RefCell, fmt, rc::Rc};

use slab::Slab;
use thalweg_filters::{Error, StreamContext};

/// The live streams of something that may go away: a worker, a connection, an endpoint. Joining and leaving cost the same however
/// many there are.
#[derive(Default)]
pub(crate) struct Group(RefCell<Slab<StreamContext>>);

/// A stream's place in a group, until it is dropped.
#[derive(Debug)]
pub(crate) struct Member {
    group: Rc<Group>,
    place: usize,
}

impl Group {
    /// Adds a stream for as long as its place is kept.
    pub(crate) fn join(self: &Rc<Self>, stream: &StreamContext) -> Member {
        Member {
            place: self.0.borrow_mut().insert(stream.clone()),
            group: Rc::clone(self),
        }
    }

    /// Ends each of the streams at its next message boundary, with `error` as its status. Those that join later stay.
    pub(crate) fn dismiss(&self, error: &Error) {
        for (_, stream) in self.0.borrow().iter() {
            stream.dismiss(error.clone());
        }
    }

    /// Looks at each of the streams.
    pub(crate) fn for_each(&self, look: impl FnMut(&StreamContext)) {
        let streams = self.0.borrow();
        streams.iter().map(|(_, stream)| stream).for_each(look);
    }

    /// How many streams there are now.
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({} streams)", self.len())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.group.0.borrow_mut().remove(self.place);
    }
}

#[cfg(test)]
mod tests {
    use thalweg_filters::{Side, stream::Protocol};
    use thalweg_proto::status::Code;
    use tokio::time::Instant;

    use super::*;

    fn stream() -> StreamContext {
        StreamContext::new(Protocol::Grpc, Instant::now(), None)
    }

    #[test]
    fn members_are_dismissed_and_nobody_else() {
        let group = Rc::<Group>::default();
        let (left, stays, late) = (stream(), stream(), stream());
        drop(group.join(&left));
        let _place = group.join(&stays);

        group.dismiss(&Error::new(
            Code::Unavailable,
            "drain",
            Side::Proxy,
            "later",
        ));
        let _late = group.join(&late);

        assert_eq!(stays.dismissed().map(Error::reason), Some("drain"));
        assert!(left.dismissed().is_none());
        assert!(late.dismissed().is_none());
        assert_eq!(group.len(), 2);
    }
}
