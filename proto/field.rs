//! Walks the protobuf fields of one message and reports the few that were asked for.
//!
//! **Why.** Filters judge streams by a name, an operation or a sequence number inside messages that
//! may be gigabytes long. Decoding a message would first collect it; here it is read as it passes.
//!
//! **How.**
//!
//! 1. [`FieldPath`]s such as `2.2` (field 2, and field 2 of the message in it) are put together
//!    once, as [`FieldPaths`]; nothing is allocated for a stream or a message after that.
//! 2. [`FieldWalker`] is fed the payload of one message in chunks of any size. A field that is on
//!    no path is stepped over by arithmetic. A field on the way to one is entered, which takes a
//!    slot of a fixed stack.
//! 3. What lies at a path is reported as it comes. Bytes are reported as ranges of the chunk:
//!    nothing is copied, and nothing is held from one chunk to the next but half a number.
//!
//! Repeated fields are reported each time; that the last one wins is for the caller to apply. So is
//! the schema: the walker takes whatever wire type stands at a path.
//!
//! ```
//! use thalweg_proto::field::{FieldEvent, FieldPath, FieldPaths, FieldValue, FieldWalker};
//!
//! const SEQUENCE: usize = 0; // events name a path by its place in the list
//! let paths = FieldPaths::new(&[FieldPath::new(&[2, 2])])?;
//!
//! let mut sequence = None;
//! let mut walker = FieldWalker::new(paths);
//! for chunk in [&[0x12, 5, 0x0a][..], &[1, b'x', 0x10], &[7]] {
//!     walker.walk(chunk, |event| match event {
//!         FieldEvent { path: SEQUENCE, value: FieldValue::Varint(number) } => sequence = Some(number),
//!         _ => {}
//!     })?;
//! }
//! walker.finish()?;
//!
//! assert_eq!(sequence, Some(7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{fmt, str::FromStr, sync::Arc};

/// The most numbers in a path, and so the deepest message that is entered.
pub const DEPTH_MAX: usize = 8;

/// The most paths that one walker follows.
pub const PATHS_MAX: usize = 32;

/// The deepest nesting of groups that is skipped.
///
/// Groups are all but extinct, so this is only there to keep the walker's stack fixed and small.
pub const GROUPS_MAX: usize = 16;

/// The largest field number: a tag is a `u32` whose lowest three bits are the wire type.
const NUMBER_MAX: u32 = u32::MAX >> 3;

/// Where a field lies: `1.2` is field 2 of the message in field 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FieldPath {
    /// Unused places are zero, which is the number of no field.
    numbers: [u32; DEPTH_MAX],
    depth: u8,
}

/// The paths that a walker reports. Cheap to clone: clones share one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPaths(Arc<[FieldPath]>);

/// Why paths cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// A part of the path is not a number from 1 to 536870911.
    BadNumber,
    /// The path has more than [`DEPTH_MAX`] numbers.
    TooDeep,
    /// There are more than [`PATHS_MAX`] paths.
    TooMany,
    /// The same path is there twice.
    Duplicate,
}

/// Something that lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldEvent {
    /// Which path: its index in the list that [`FieldPaths::new`] took.
    pub path: usize,
    /// What lies there.
    pub value: FieldValue,
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// A field of wire type 0, such as `uint64` or `bool`, before any zigzag is undone.
    Varint(u64),
    /// A field of wire type 5, such as `fixed32` or the bits of a `float`.
    Fixed32(u32),
    /// A field of wire type 1, such as `fixed64` or the bits of a `double`.
    Fixed64(u64),
    /// A string, a message or a packed list begins. An empty one begins and ends, too.
    Start {
        /// How many bytes it says it has. Nothing has proved yet that they will come.
        length: u64,
    },
    /// `chunk[start..end]` belongs to it. Never empty.
    ///
    /// A message that longer paths lead into has none: its content is reported at those paths.
    Bytes {
        /// Index of the first byte in the given chunk.
        start: usize,
        /// Index after the last byte in the given chunk.
        end: usize,
    },
    /// It has come whole.
    End,
}

/// Why a payload is no protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// A field has the number 0, or one above 536870911.
    BadNumber,
    /// A field has a wire type that does not exist.
    BadWireType(u8),
    /// A varint goes on after ten bytes, or does not fit 64 bits.
    VarintTooLong,
    /// A field reaches over the end of the message that it lies in.
    Overrun,
    /// Groups are nested deeper than [`GROUPS_MAX`].
    GroupsTooDeep,
    /// A group ends that is not the innermost open one.
    UnexpectedGroupEnd,
    /// The message ended within a field.
    Truncated,
}

/// Reads one message after another, each in chunks of any size.
///
/// Groups (wire types 3 and 4) are skipped whole, also those that lie at a path.
#[derive(Clone, Debug)]
pub struct FieldWalker {
    paths: FieldPaths,
    step: Step,
    /// How much of the message has been walked over.
    at: u64,
    /// Where the field ends that `step` is in, if it is [`Step::Payload`].
    payload_end: u64,
    /// The part of a varint or fixed number that has come, and its size in bits.
    number: u64,
    bits: u8,
    /// The messages that the walk is in; the first is the whole.
    messages: [Message; DEPTH_MAX],
    /// Index of the innermost message.
    depth: u8,
    /// The field numbers of the groups that are open in the innermost message.
    groups: [u32; GROUPS_MAX],
    groups_open: u8,
}

// One lives in every direction of every stream whose filters read messages.
const _: () = assert!(size_of::<FieldWalker>() <= 256);

/// What comes next in the message.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Nothing, or the next field.
    Boundary,
    /// The tag of a field.
    Tag,
    /// The number of a varint field.
    Varint(Target),
    /// The number of a fixed field, which has so many bits, at a path.
    Fixed(u8, u8),
    /// The length of a field.
    Length(Target),
    /// The bytes of a field, which are reported at a path or skipped.
    Payload(Option<u8>),
    /// Nothing more: the message has been refused.
    Failed(FieldError),
}

/// What the paths have to do with a field.
#[derive(Clone, Copy, Debug, Default)]
struct Target {
    /// The path that ends at this field.
    path: Option<u8>,
    /// The longer paths that lead through this field, one bit each.
    through: u32,
}

/// A message that the walk is in.
#[derive(Clone, Copy, Debug)]
struct Message {
    /// Where it ends. How long the whole is, only [`FieldWalker::finish`] tells.
    end: u64,
    target: Target,
}

// === impl FieldPath ===

impl FieldPath {
    /// A path that is known when the program is written.
    ///
    /// # Panics
    ///
    /// When it is no path; in a `const`, this does not compile. Read other paths with [`str::parse`].
    pub const fn new(numbers: &[u32]) -> Self {
        assert!(!numbers.is_empty() && numbers.len() <= DEPTH_MAX);
        let mut path = Self {
            numbers: [0; DEPTH_MAX],
            depth: numbers.len() as u8,
        };
        let mut i = 0;
        while i < numbers.len() {
            assert!(0 < numbers[i] && numbers[i] <= NUMBER_MAX);
            path.numbers[i] = numbers[i];
            i += 1;
        }
        path
    }

    fn numbers(&self) -> &[u32] {
        &self.numbers[..usize::from(self.depth)]
    }
}

impl FromStr for FieldPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let mut numbers = [0; DEPTH_MAX];
        let mut depth = 0;
        for part in text.split('.') {
            let place = numbers.get_mut(depth).ok_or(PathError::TooDeep)?;
            // `parse` would take a plus sign.
            *place = Some(part)
                .filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|part| part.parse().ok())
                .filter(|number| (1..=NUMBER_MAX).contains(number))
                .ok_or(PathError::BadNumber)?;
            depth += 1;
        }
        Ok(Self::new(&numbers[..depth]))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, number) in self.numbers().iter().enumerate() {
            let dot = if depth == 0 { "" } else { "." };
            write!(f, "{dot}{number}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FieldPath({self})")
    }
}

// === impl FieldPaths ===

impl FieldPaths {
    /// Puts paths together. A path may lead through a field that another one reports: `1`, `1.2`.
    pub fn new(paths: &[FieldPath]) -> Result<Self, PathError> {
        if paths.len() > PATHS_MAX {
            return Err(PathError::TooMany);
        }
        for (i, path) in paths.iter().enumerate() {
            if paths[..i].contains(path) {
                return Err(PathError::Duplicate);
            }
        }
        Ok(Self(paths.into()))
    }

    /// The paths, in the order in which events number them.
    pub fn as_slice(&self) -> &[FieldPath] {
        &self.0
    }

    /// What the paths have to do with the whole message: all of them lead into it.
    fn whole(&self) -> Target {
        let through = (0..self.0.len()).fold(0, |bits, path| bits | 1 << path);
        Target {
            path: None,
            through,
        }
    }

    /// What those paths that lead `through` a message at `depth` have to do with one of its fields.
    fn target(&self, through: u32, depth: u8, number: u32) -> Target {
        let mut target = Target::default();
        let mut left = through;
        while left != 0 {
            let path = left.trailing_zeros() as u8; // below 32
            left &= left - 1;

            let FieldPath {
                numbers,
                depth: depth_of_path,
            } = &self.0[usize::from(path)];
            if numbers[usize::from(depth)] != number {
                continue;
            }
            if *depth_of_path == depth + 1 {
                target.path = Some(path);
            } else {
                target.through |= 1 << path;
            }
        }
        target
    }
}

// === impl FieldWalker ===

impl FieldWalker {
    /// A walker that reports what lies at these paths.
    pub fn new(paths: FieldPaths) -> Self {
        let whole = Message {
            end: u64::MAX,
            target: paths.whole(),
        };
        Self {
            paths,
            step: Step::Boundary,
            at: 0,
            payload_end: 0,
            number: 0,
            bits: 0,
            messages: [whole; DEPTH_MAX],
            depth: 0,
            groups: [0; GROUPS_MAX],
            groups_open: 0,
        }
    }

    /// Takes the next chunk of the message and reports what in it lies at a path.
    ///
    /// After an error, the rest of the message is refused with the same error.
    pub fn walk(&mut self, chunk: &[u8], on: impl FnMut(FieldEvent)) -> Result<(), FieldError> {
        let outcome = self.advance(chunk, on);
        if let Err(error) = outcome {
            self.step = Step::Failed(error);
        }
        outcome
    }

    /// Says that the message has ended, and makes the walker ready for the next one.
    pub fn finish(&mut self) -> Result<(), FieldError> {
        let outcome = match self.step {
            Step::Failed(error) => Err(error),
            Step::Boundary if self.depth == 0 && self.groups_open == 0 => Ok(()),
            _ => Err(FieldError::Truncated),
        };
        self.step = Step::Boundary;
        self.at = 0;
        self.number = 0;
        self.bits = 0;
        self.depth = 0;
        self.groups_open = 0;
        outcome
    }

    fn advance(&mut self, chunk: &[u8], mut on: impl FnMut(FieldEvent)) -> Result<(), FieldError> {
        let mut report = |path: u8, value| {
            on(FieldEvent {
                path: usize::from(path),
                value,
            });
        };

        let mut rest = chunk;
        loop {
            match self.step {
                Step::Boundary => {
                    while let Some(target) = self.leave_message()? {
                        if let Some(path) = target.path {
                            report(path, FieldValue::End);
                        }
                    }
                    if rest.is_empty() {
                        return Ok(());
                    }
                    self.step = Step::Tag;
                }
                Step::Tag => {
                    let Some(tag) = self.varint(&mut rest)? else {
                        return Ok(());
                    };
                    self.begin_field(tag)?;
                }
                Step::Varint(target) => {
                    let Some(number) = self.varint(&mut rest)? else {
                        return Ok(());
                    };
                    if let Some(path) = target.path {
                        report(path, FieldValue::Varint(number));
                    }
                    self.step = Step::Boundary;
                }
                Step::Fixed(size, path) => {
                    let Some(number) = self.fixed(size, &mut rest) else {
                        return Ok(());
                    };
                    let value = match size {
                        32 => FieldValue::Fixed32(number as u32), // it has no more bits
                        _ => FieldValue::Fixed64(number),
                    };
                    report(path, value);
                    self.step = Step::Boundary;
                }
                Step::Length(target) => {
                    let Some(length) = self.varint(&mut rest)? else {
                        return Ok(());
                    };
                    let end = self.end_of(length)?;
                    if let Some(path) = target.path {
                        report(path, FieldValue::Start { length });
                    }
                    if target.through == 0 {
                        self.payload_end = end;
                        self.step = Step::Payload(target.path);
                    } else {
                        // There is room: a path has at most as many numbers as there are places,
                        // and its last one is never entered.
                        self.depth += 1;
                        self.messages[usize::from(self.depth)] = Message { end, target };
                        self.step = Step::Boundary;
                    }
                }
                Step::Payload(path) => {
                    let left = self.payload_end - self.at;
                    let taken =
                        usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    let start = chunk.len() - rest.len();
                    rest = &rest[taken..];
                    self.at += taken as u64;
                    if let Some(path) = path
                        && taken > 0
                    {
                        let end = start + taken;
                        report(path, FieldValue::Bytes { start, end });
                    }
                    if self.at < self.payload_end {
                        return Ok(());
                    }
                    if let Some(path) = path {
                        report(path, FieldValue::End);
                    }
                    self.step = Step::Boundary;
                }
                Step::Failed(error) => return Err(error),
            }
        }
    }

    /// Leaves the innermost message if it ends here, and says what it was to the paths.
    fn leave_message(&mut self) -> Result<Option<Target>, FieldError> {
        let Message { end, target } = self.messages[usize::from(self.depth)];
        if self.at < end {
            return Ok(None);
        }
        if self.groups_open > 0 {
            return Err(FieldError::Overrun);
        }
        self.depth -= 1; // the whole never ends here: no one can send u64::MAX bytes
        Ok(Some(target))
    }

    /// Decides what to do with the field that this tag begins.
    fn begin_field(&mut self, tag: u64) -> Result<(), FieldError> {
        let tag = u32::try_from(tag).map_err(|_| FieldError::BadNumber)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(FieldError::BadNumber);
        }
        let target = if self.groups_open == 0 {
            let through = self.messages[usize::from(self.depth)].target.through;
            self.paths.target(through, self.depth, number)
        } else {
            Target::default()
        };

        self.step = match tag & 7 {
            0 => Step::Varint(target),
            1 => self.begin_fixed(64, target)?,
            2 => Step::Length(target),
            3 => {
                let group = self
                    .groups
                    .get_mut(usize::from(self.groups_open))
                    .ok_or(FieldError::GroupsTooDeep)?;
                *group = number;
                self.groups_open += 1;
                Step::Boundary
            }
            4 => {
                let innermost = self.groups[..usize::from(self.groups_open)].last();
                if innermost != Some(&number) {
                    return Err(FieldError::UnexpectedGroupEnd);
                }
                self.groups_open -= 1;
                Step::Boundary
            }
            5 => self.begin_fixed(32, target)?,
            other => return Err(FieldError::BadWireType(other as u8)), // 6 or 7
        };
        Ok(())
    }

    /// Decides what to do with a fixed number of so many bits.
    fn begin_fixed(&mut self, size: u8, target: Target) -> Result<Step, FieldError> {
        self.payload_end = self.end_of(u64::from(size / 8))?;
        Ok(match target.path {
            Some(path) => Step::Fixed(size, path),
            None => Step::Payload(None),
        })
    }

    /// Where a field of this length ends.
    fn end_of(&self, length: u64) -> Result<u64, FieldError> {
        self.at
            .checked_add(length)
            .filter(|end| *end <= self.messages[usize::from(self.depth)].end)
            .ok_or(FieldError::Overrun)
    }

    /// Reads a varint; `None` when the chunk ends first.
    #[inline]
    fn varint(&mut self, rest: &mut &[u8]) -> Result<Option<u64>, FieldError> {
        let end = self.messages[usize::from(self.depth)].end;
        // Nearly every tag has one byte, and so have the lengths and numbers of small messages.
        if let Some((&byte @ 0..0x80, after)) = rest.split_first()
            && self.bits == 0
            && self.at < end
        {
            *rest = after;
            self.at += 1;
            return Ok(Some(byte.into()));
        }
        loop {
            if self.at == end {
                return Err(FieldError::Overrun);
            }
            let Some((&byte, after)) = rest.split_first() else {
                return Ok(None);
            };
            // The tenth byte holds the 64th bit and nothing else.
            if self.bits == 63 && byte > 1 {
                return Err(FieldError::VarintTooLong);
            }
            *rest = after;
            self.at += 1;
            self.number |= u64::from(byte & 0x7f) << self.bits;
            self.bits += 7;
            if byte < 0x80 {
                return Ok(Some(self.take_number()));
            }
        }
    }

    /// Reads a fixed number of so many bits; `None` when the chunk ends first.
    fn fixed(&mut self, size: u8, rest: &mut &[u8]) -> Option<u64> {
        while let Some((&byte, after)) = rest.split_first() {
            *rest = after;
            self.at += 1;
            self.number |= u64::from(byte) << self.bits;
            self.bits += 8;
            if self.bits == size {
                return Some(self.take_number());
            }
        }
        None
    }

    fn take_number(&mut self) -> u64 {
        self.bits = 0;
        std::mem::take(&mut self.number)
    }
}

// === impl PathError, FieldError ===

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadNumber => write!(
                f,
                "a field path is numbers from 1 to {NUMBER_MAX} with dots between them"
            ),
            Self::TooDeep => write!(f, "a field path has at most {DEPTH_MAX} numbers"),
            Self::TooMany => write!(f, "there are more than {PATHS_MAX} field paths"),
            Self::Duplicate => f.write_str("the same field path is there twice"),
        }
    }
}

impl std::error::Error for PathError {}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadNumber => write!(f, "a field number is not from 1 to {NUMBER_MAX}"),
            Self::BadWireType(kind) => write!(f, "a field has the unknown wire type {kind}"),
            Self::VarintTooLong => f.write_str("a varint does not fit 64 bits"),
            Self::Overrun => f.write_str("a field reaches over the end of its message"),
            Self::GroupsTooDeep => write!(f, "groups are nested more than {GROUPS_MAX} deep"),
            Self::UnexpectedGroupEnd => f.write_str("a group ends that is not open"),
            Self::Truncated => f.write_str("the message ends within a field"),
        }
    }
}

impl std::error::Error for FieldError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> FieldPaths {
        let paths: Vec<FieldPath> = texts.iter().map(|text| text.parse().unwrap()).collect();
        FieldPaths::new(&paths).unwrap()
    }

    /// Walks one message that comes in one chunk.
    fn walk(texts: &[&str], message: &[u8]) -> (Vec<(usize, FieldValue)>, Result<(), FieldError>) {
        let mut walker = FieldWalker::new(paths(texts));
        let mut seen = Vec::new();
        let outcome = walker
            .walk(message, |event| seen.push((event.path, event.value)))
            .and_then(|()| walker.finish());
        (seen, outcome)
    }

    fn fault(message: &[u8]) -> FieldError {
        walk(&["1.1"], message).1.unwrap_err()
    }

    use FieldValue::{Bytes, End, Fixed32, Fixed64, Start, Varint};

    #[test]
    fn name_and_operation_are_found_in_the_first_message() {
        let message = b"\x0a\x07\x0a\x01n\x12\x02op";

        let (seen, outcome) = walk(&["1.1", "1.2"], message);

        assert_eq!(outcome, Ok(()));
        assert_eq!(
            seen,
            [
                (0, Start { length: 1 }),
                (0, Bytes { start: 4, end: 5 }),
                (0, End),
                (1, Start { length: 2 }),
                (1, Bytes { start: 7, end: 9 }),
                (1, End),
            ]
        );
    }

    #[test]
    fn empty_message_in_a_oneof_is_present() {
        let (seen, outcome) = walk(&["1", "2", "1.1", "2.2"], &[0x12, 0]);

        assert_eq!(outcome, Ok(()));
        assert_eq!(seen, [(1, Start { length: 0 }), (1, End)]);
    }

    #[test]
    fn message_that_is_entered_reports_no_bytes_of_its_own() {
        let (seen, outcome) = walk(&["2", "2.2"], &[0x12, 5, 0x0a, 1, b'x', 0x10, 7]);

        assert_eq!(outcome, Ok(()));
        assert_eq!(seen, [(0, Start { length: 5 }), (1, Varint(7)), (0, End)]);
    }

    #[test]
    fn sequence_number_is_read_past_gigabytes_of_payload() {
        const PAYLOAD: u64 = 3 << 30;
        let mut walker = FieldWalker::new(paths(&["2.2"]));
        let mut seen = Vec::new();
        let mut on = |event: FieldEvent| seen.push(event.value);

        let chunk = vec![0xff; 1 << 20];
        // 2: { 1: 3 GiB, 2: 300 }
        let head = [
            0x12, 0x89, 0x80, 0x80, 0x80, 0x0c, 0x0a, 0x80, 0x80, 0x80, 0x80, 0x0c,
        ];
        walker.walk(&head, &mut on).unwrap();
        for _ in 0..PAYLOAD >> 20 {
            walker.walk(&chunk, &mut on).unwrap();
        }
        walker.walk(&[0x10, 0xac, 0x02], &mut on).unwrap();

        assert_eq!(walker.finish(), Ok(()));
        assert_eq!(seen, [Varint(300)]);
    }

    #[test]
    fn every_occurrence_is_reported() {
        let (seen, _) = walk(&["1"], &[0x08, 1, 0x08, 2]);

        assert_eq!(seen, [(0, Varint(1)), (0, Varint(2))]);
    }

    #[test]
    fn fixed_numbers_are_little_endian() {
        let message = [0x0d, 1, 0, 0, 0x80, 0x11, 2, 0, 0, 0, 0, 0, 0, 0x80];

        let (seen, outcome) = walk(&["1", "2"], &message);

        assert_eq!(outcome, Ok(()));
        assert_eq!(
            seen,
            [(0, Fixed32(0x8000_0001)), (1, Fixed64((1 << 63) | 2))]
        );
        assert_eq!(walk(&["3"], &message), (vec![], Ok(())));
    }

    #[test]
    fn number_on_the_way_to_a_path_is_skipped() {
        assert_eq!(
            walk(&["1.1"], &[0x08, 1, 0x0a, 2, 0x08, 2]).0,
            [(0, Varint(2))]
        );
    }

    #[test]
    fn nothing_in_a_field_that_is_on_no_path_is_looked_at() {
        assert_eq!(
            walk(&["1.1"], &[0x12, 3, 0xff, 0xff, 0xff]),
            (vec![], Ok(()))
        );
    }

    #[test]
    fn largest_varint_fits_and_one_more_bit_does_not() {
        let mut message = vec![0x08];
        message.extend([0xff; 9]);
        message.push(1);
        assert_eq!(walk(&["1"], &message).0, [(0, Varint(u64::MAX))]);

        *message.last_mut().unwrap() = 2;
        assert_eq!(walk(&["1"], &message).1, Err(FieldError::VarintTooLong));
    }

    #[test]
    fn varint_of_eleven_bytes_is_refused() {
        assert_eq!(fault(&[0x80; 11]), FieldError::VarintTooLong);
    }

    #[test]
    fn bad_field_numbers_are_refused() {
        assert_eq!(fault(&[0x00]), FieldError::BadNumber);
        assert_eq!(fault(&[0x07]), FieldError::BadNumber);
        assert_eq!(
            fault(&[0x80, 0x80, 0x80, 0x80, 0x10]),
            FieldError::BadNumber
        );
    }

    #[test]
    fn wire_types_that_do_not_exist_are_refused() {
        assert_eq!(fault(&[0x0e]), FieldError::BadWireType(6));
        assert_eq!(fault(&[0x0f]), FieldError::BadWireType(7));
    }

    #[test]
    fn field_over_the_end_of_its_message_is_refused() {
        // Within field 1, which has one byte: a length, a fixed number, a varint, a tag.
        for message in [
            &[0x0a, 2, 0x0a, 1][..],
            &[0x0a, 2, 0x0d, 0],
            &[0x0a, 2, 0x08, 0x80, 0x00],
            &[0x0a, 1, 0x88, 0x00],
            &[0x0a, 1, 0x08, 0x00],
            &[0x0a, 1, 0x08],
        ] {
            assert_eq!(fault(message), FieldError::Overrun, "{message:?}");
        }
    }

    #[test]
    fn refusal_does_not_wait_for_another_byte() {
        let mut walker = FieldWalker::new(paths(&["1.1"]));

        // The message in field 1 ends where the number of its field 1 must begin.
        assert_eq!(
            walker.walk(&[0x0a, 1, 0x08], |_| {}),
            Err(FieldError::Overrun)
        );
    }

    #[test]
    fn length_that_overflows_is_refused_at_once() {
        let mut walker = FieldWalker::new(paths(&["1"]));
        let mut message = vec![0x12];
        message.extend([0xff; 9]);
        message.push(1);

        assert_eq!(walker.walk(&message, |_| {}), Err(FieldError::Overrun));
    }

    #[test]
    fn message_that_ends_within_a_field_is_refused() {
        for message in [
            &[0x08][..],
            &[0x88],
            &[0x08, 0x80],
            &[0x0a],
            &[0x0a, 1],
            &[0x0a, 2, 0x08],
            &[0x12, 1],
            &[0x0d, 0],
            &[0x0b],
        ] {
            assert_eq!(fault(message), FieldError::Truncated, "{message:?}");
        }
    }

    #[test]
    fn groups_are_skipped_whole() {
        // 1: group { 1: "x", 2: group {}, 1: fixed32 }, 1: { 1: 7 }
        let message = [
            0x0b, 0x0a, 1, b'x', 0x13, 0x14, 0x0d, 0, 0, 0, 0, 0x0c, 0x0a, 2, 0x08, 7,
        ];

        let (seen, outcome) = walk(&["1.1"], &message);

        assert_eq!(outcome, Ok(()));
        assert_eq!(seen, [(0, Varint(7))]);
    }

    #[test]
    fn groups_end_in_order_and_within_their_message() {
        assert_eq!(fault(&[0x0c]), FieldError::UnexpectedGroupEnd);
        assert_eq!(fault(&[0x0b, 0x14]), FieldError::UnexpectedGroupEnd);
        assert_eq!(fault(&[0x0a, 1, 0x13, 0x14]), FieldError::Overrun);
    }

    #[test]
    fn groups_nest_only_so_deep() {
        let nested = |depth| [vec![0x0b; depth], vec![0x0c; depth]].concat();

        assert_eq!(walk(&["1"], &nested(GROUPS_MAX)).1, Ok(()));
        assert_eq!(fault(&nested(GROUPS_MAX + 1)), FieldError::GroupsTooDeep);
    }

    #[test]
    fn deepest_path_is_followed() {
        let message = [
            0x0a, 14, 0x0a, 12, 0x0a, 10, 0x0a, 8, 0x0a, 6, 0x0a, 4, 0x0a, 2, 0x08, 7,
        ];

        assert_eq!(
            walk(&["1.1.1.1.1.1.1.1"], &message),
            (vec![(0, Varint(7))], Ok(()))
        );
    }

    #[test]
    fn refused_message_stays_refused_until_it_is_finished() {
        let mut walker = FieldWalker::new(paths(&["1"]));

        assert_eq!(walker.walk(&[0x00], |_| {}), Err(FieldError::BadNumber));
        assert_eq!(walker.walk(&[0x08, 1], |_| {}), Err(FieldError::BadNumber));
        assert_eq!(walker.finish(), Err(FieldError::BadNumber));

        let mut seen = 0;
        walker.walk(&[0x08, 1], |_| seen += 1).unwrap();
        assert_eq!((seen, walker.finish()), (1, Ok(())));
    }

    #[test]
    fn empty_message_is_whole() {
        assert_eq!(walk(&["1"], &[]), (vec![], Ok(())));
    }

    #[test]
    fn path_is_shown_as_it_is_written() {
        for text in ["1", "2.2", "536870911", "1.2.3.4.5.6.7.8"] {
            assert_eq!(text.parse::<FieldPath>().unwrap().to_string(), text);
        }
        assert_eq!("2.2".parse(), Ok(FieldPath::new(&[2, 2])));
    }

    #[test]
    fn each_fault_of_a_path_is_named() {
        for text in [
            "",
            ".",
            "1.",
            ".1",
            "1..2",
            "0",
            "1.0",
            "+1",
            "-1",
            "a",
            " 1",
            "536870912",
        ] {
            assert_eq!(
                text.parse::<FieldPath>(),
                Err(PathError::BadNumber),
                "{text:?}"
            );
        }
        assert_eq!(
            "1.2.3.4.5.6.7.8.9".parse::<FieldPath>(),
            Err(PathError::TooDeep)
        );

        let all: Vec<FieldPath> = (1..=33).map(|number| FieldPath::new(&[number])).collect();
        let most = FieldPaths::new(&all[..PATHS_MAX]).unwrap();
        assert_eq!(most.as_slice(), &all[..PATHS_MAX]);
        assert_eq!(FieldPaths::new(&all).unwrap_err(), PathError::TooMany);
        assert_eq!(
            FieldPaths::new(&[all[0]; 2]).unwrap_err(),
            PathError::Duplicate
        );
    }
}
