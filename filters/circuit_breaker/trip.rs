//! When a breaker trips: an expression over its counts, in the part of CEL that Dapr's resiliency uses.
//!
//! ```text
//! or    = and { "||" and }              sum   = term { ("+" | "-") term }
//! and   = rel { "&&" rel }              term  = unary { ("*" | "/" | "%") unary }
//! rel   = sum { ("==" | "!=" | "<" | "<=" | ">" | ">=") sum }
//! unary = { "!" | "-" } ( number | "true" | "false" | count
//!                       | ("double" | "int") "(" or ")" | "(" or ")" )
//! ```
//!
//! Integers stay integers and their division truncates. Arithmetic takes two integers or two doubles, as in CEL;
//! comparisons take either, by value. What cannot be computed (a division by zero, an overflow) is CEL's *error*: it
//! does not trip, and `&&` and `||` get over it where their other side decides.
//!
//! Everything that can be wrong is found at load: one pass reads the text, checks the types and writes steps for a stack,
//! so that what is kept holds no recursion and cannot fail.
//!
//! By hand, because the crate `cel` 0.15 would add twenty crates to the build, a parser generator's runtime and a database
//! of time zones among them, for five variables.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    de::{Deserialize, Deserializer, Error as _},
    ser::{Serialize, Serializer},
};

use super::state::Counts;

/// Longest text in bytes; with it, the stack and the time of an evaluation are bounded.
const LENGTH_MAX: usize = 1024;
/// Deepest nesting of parentheses and signs, which is the reader's recursion.
const DEPTH_MAX: u32 = 32;

/// A condition on a breaker's counts, such as `consecutiveFailures > 5`.
#[derive(Clone)]
pub struct Trip {
    text: String,
    steps: Vec<Step>,
}

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The character at which it shows, counted from 1.
    pub column: usize,
    message: String,
}

/// One step on a stack of values.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push(Value),
    Count(Count),
    Not,
    Negate,
    ToDouble,
    ToInt,
    Apply(Operator),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Bool(bool),
    Int(i64),
    Double(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    Int,
    Double,
}

type Count = fn(&Counts) -> u64;

const COUNTS: [(&str, Count); 5] = [
    ("requests", |counts| counts.requests),
    ("totalSuccesses", |counts| counts.total_successes),
    ("totalFailures", |counts| counts.total_failures),
    ("consecutiveSuccesses", |counts| {
        counts.consecutive_successes
    }),
    ("consecutiveFailures", |counts| counts.consecutive_failures),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    LessOrEqual,
    GreaterOrEqual,
    Less,
    Greater,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Spelling, meaning and binding power; those that begin like another come first.
const OPERATORS: [(&str, Operator, u8); 13] = [
    ("||", Operator::Or, 1),
    ("&&", Operator::And, 2),
    ("==", Operator::Equal, 3),
    ("!=", Operator::NotEqual, 3),
    ("<=", Operator::LessOrEqual, 3),
    (">=", Operator::GreaterOrEqual, 3),
    ("<", Operator::Less, 3),
    (">", Operator::Greater, 3),
    ("+", Operator::Add, 4),
    ("-", Operator::Subtract, 4),
    ("*", Operator::Multiply, 5),
    ("/", Operator::Divide, 5),
    ("%", Operator::Remainder, 5),
];

/// Reads an expression by the binding power of its operators.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    steps: Vec<Step>,
}

// === impl Trip ===

impl Trip {
    /// Reads and checks an expression.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let mut reader = Reader {
            text,
            at: 0,
            depth: 0,
            steps: Vec::new(),
        };
        if text.len() > LENGTH_MAX {
            let message = format!("the expression is longer than {LENGTH_MAX} bytes");
            return Err(reader.fault(0, message));
        }
        reader.skip_space();
        let start = reader.at;
        let kind = reader.expression(0)?;
        if !reader.rest().is_empty() {
            return Err(reader.unexpected("an operator or the end"));
        }
        if kind != Type::Bool {
            let message = format!("expected a condition, which is true or false, found {kind}");
            return Err(reader.fault(start, message));
        }
        Ok(Self {
            text: text.to_owned(),
            steps: reader.steps,
        })
    }

    /// Whether the counts call for the breaker to trip.
    pub fn holds(&self, counts: &Counts) -> bool {
        let mut stack: Vec<Option<Value>> = Vec::new();
        for step in &self.steps {
            let value = match *step {
                Step::Push(value) => Some(value),
                Step::Count(count) => i64::try_from(count(counts)).ok().map(Value::Int),
                Step::Apply(operator) => {
                    let right = stack.pop().flatten();
                    let left = stack.pop().flatten();
                    operator.apply(left, right)
                }
                unary => stack.pop().flatten().and_then(|value| unary.apply(value)),
            };
            stack.push(value);
        }
        stack.pop().flatten() == Some(Value::Bool(true))
    }
}

impl Default for Trip {
    /// Dapr's own: `consecutiveFailures > 5`.
    fn default() -> Self {
        Self::parse("consecutiveFailures > 5").expect("a test reads it")
    }
}

/// Two conditions are the same if they are written the same.
impl PartialEq for Trip {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Trip {}

impl fmt::Debug for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trip({})", self.text)
    }
}

impl Serialize for Trip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Trip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|fault| D::Error::custom(format!("trip: {fault}")))
    }
}

impl JsonSchema for Trip {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Trip".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1})
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.message)
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "a condition",
            Self::Int => "an integer",
            Self::Double => "a double",
        })
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.skip_space();
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.advance(word.len());
        }
        found
    }

    /// Takes as many bytes as `fits` says.
    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let word = &rest[..rest.find(|c| !fits(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    fn fault(&self, at: usize, message: impl Into<String>) -> Fault {
        Fault {
            column: self.text[..at].chars().count() + 1,
            message: message.into(),
        }
    }

    fn unexpected(&self, expected: &str) -> Fault {
        let found = match self.rest().chars().next() {
            Some(character) => format!("`{character}`"),
            None => "the end".to_owned(),
        };
        self.fault(self.at, format!("expected {expected}, found {found}"))
    }

    /// Operators that bind tighter than `floor`, all from the left.
    fn expression(&mut self, floor: u8) -> Result<Type, Fault> {
        let mut left = self.unary()?;
        loop {
            let rest = self.rest();
            let found = OPERATORS.iter().find(|(name, ..)| rest.starts_with(name));
            let Some((name, operator, power)) = found.filter(|(.., power)| *power > floor) else {
                return Ok(left);
            };
            let at = self.at;
            self.advance(name.len());
            let right = self.expression(*power)?;
            left = operator.types(left, right).ok_or_else(|| {
                let hint = match (left, right) {
                    (Type::Int, Type::Double) | (Type::Double, Type::Int) => {
                        "; convert one with double() or int()"
                    }
                    _ => "",
                };
                self.fault(at, format!("`{name}` cannot take {left} and {right}{hint}"))
            })?;
            self.steps.push(Step::Apply(*operator));
        }
    }

    fn unary(&mut self) -> Result<Type, Fault> {
        let at = self.at;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.fault(at, format!("nested deeper than {DEPTH_MAX}")));
        }
        let kind = if self.take("!") {
            match self.unary()? {
                Type::Bool => self.steps.push(Step::Not),
                other => return Err(self.fault(at, format!("`!` cannot take {other}"))),
            }
            Type::Bool
        } else if self.take("-") {
            match self.unary()? {
                Type::Bool => return Err(self.fault(at, "`-` cannot take a condition")),
                number => {
                    self.steps.push(Step::Negate);
                    number
                }
            }
        } else {
            self.primary()?
        };
        self.depth -= 1;
        Ok(kind)
    }

    fn primary(&mut self) -> Result<Type, Fault> {
        let at = self.at;
        match self.rest().chars().next() {
            Some('(') => self.parenthesized(),
            Some('0'..='9' | '.') => self.number(),
            Some('a'..='z' | 'A'..='Z' | '_') => {
                let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
                self.skip_space();
                self.word(word, at)
            }
            _ => Err(self.unexpected("a number, a count or `(`")),
        }
    }

    fn parenthesized(&mut self) -> Result<Type, Fault> {
        if !self.take("(") {
            return Err(self.unexpected("`(`"));
        }
        let kind = self.expression(0)?;
        if !self.take(")") {
            return Err(self.unexpected("an operator or `)`"));
        }
        Ok(kind)
    }

    fn number(&mut self) -> Result<Type, Fault> {
        let at = self.at;
        self.take_while(|c| c.is_ascii_digit() || c == '.');
        if self.rest().starts_with(['e', 'E']) {
            self.at += 1;
            self.at += usize::from(self.rest().starts_with(['+', '-']));
        }
        // Whatever is glued to a number makes it none: `5s`, `1u`.
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        let text = &self.text[at..self.at];
        let value = if text.bytes().all(|byte| byte.is_ascii_digit()) {
            text.parse().ok().map(Value::Int)
        } else {
            let number = text.parse().ok().filter(|number: &f64| number.is_finite());
            number.map(Value::Double)
        };
        let fault = || self.fault(at, format!("`{text}` is no number that fits"));
        let value = value.ok_or_else(fault)?;
        self.skip_space();
        Ok(self.push(value))
    }

    fn word(&mut self, word: &str, at: usize) -> Result<Type, Fault> {
        let conversion = match word {
            "true" | "false" => return Ok(self.push(Value::Bool(word == "true"))),
            "double" => (Step::ToDouble, Type::Double),
            "int" => (Step::ToInt, Type::Int),
            _ => {
                let known = COUNTS.iter().find(|(name, _)| *name == word);
                let (_, count) = known.ok_or_else(|| {
                    let [first @ .., last] = COUNTS.map(|(name, _)| name);
                    let names = first.join(", ");
                    let message = format!("there is no `{word}`; there are {names} and {last}");
                    self.fault(at, message)
                })?;
                self.steps.push(Step::Count(*count));
                return Ok(Type::Int);
            }
        };
        if self.parenthesized()? == Type::Bool {
            return Err(self.fault(at, format!("`{word}` cannot take a condition")));
        }
        self.steps.push(conversion.0);
        Ok(conversion.1)
    }

    fn push(&mut self, value: Value) -> Type {
        self.steps.push(Step::Push(value));
        match value {
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Double(_) => Type::Double,
        }
    }
}

// === impl Step, impl Operator ===

impl Step {
    /// What a step makes of the one value it takes.
    fn apply(self, value: Value) -> Option<Value> {
        Some(match (self, value) {
            (Self::Not, Value::Bool(value)) => Value::Bool(!value),
            (Self::Negate, Value::Int(number)) => Value::Int(number.checked_neg()?),
            (Self::Negate, Value::Double(number)) => Value::Double(-number),
            (Self::ToDouble, number) => Value::Double(number.as_double()?),
            (Self::ToInt, Value::Int(number)) => Value::Int(number),
            // Within what an integer holds, both bounds left out as in CEL.
            (Self::ToInt, Value::Double(number)) if number.abs() < -(i64::MIN as f64) => {
                Value::Int(number as i64)
            }
            _ => return None,
        })
    }
}

impl Value {
    fn as_double(self) -> Option<f64> {
        match self {
            Self::Bool(_) => None,
            Self::Int(number) => Some(number as f64),
            Self::Double(number) => Some(number),
        }
    }
}

impl Operator {
    /// The type of the result, or `None` where the operator cannot take these two.
    fn types(self, left: Type, right: Type) -> Option<Type> {
        use Type::{Bool, Double, Int};
        match (self, left, right) {
            (Self::Or | Self::And | Self::Equal | Self::NotEqual, Bool, Bool) => Some(Bool),
            (Self::Or | Self::And, ..) | (_, Bool, _) | (_, _, Bool) => None,
            (
                Self::Equal
                | Self::NotEqual
                | Self::LessOrEqual
                | Self::GreaterOrEqual
                | Self::Less
                | Self::Greater,
                ..,
            ) => Some(Bool),
            (_, Int, Int) => Some(Int),
            (Self::Remainder, ..) => None,
            (_, Double, Double) => Some(Double),
            _ => None,
        }
    }

    /// `None` is CEL's error, going in and coming out.
    fn apply(self, left: Option<Value>, right: Option<Value>) -> Option<Value> {
        // The side that decides does so whatever has become of the other.
        let decisive = Some(Value::Bool(self == Self::Or));
        if matches!(self, Self::Or | Self::And) {
            return match (left, right) {
                _ if left == decisive || right == decisive => decisive,
                _ => left.and(right),
            };
        }
        let (left, right) = (left?, right?);
        Some(match (left, right) {
            (Value::Int(left), Value::Int(right)) => match self {
                Self::Add => Value::Int(left.checked_add(right)?),
                Self::Subtract => Value::Int(left.checked_sub(right)?),
                Self::Multiply => Value::Int(left.checked_mul(right)?),
                Self::Divide => Value::Int(left.checked_div(right)?),
                Self::Remainder => Value::Int(left.checked_rem(right)?),
                _ => Value::Bool(self.compares(&left, &right)),
            },
            (Value::Bool(left), Value::Bool(right)) => Value::Bool(self.compares(&left, &right)),
            _ => {
                let (left, right) = (left.as_double()?, right.as_double()?);
                match self {
                    Self::Add => Value::Double(left + right),
                    Self::Subtract => Value::Double(left - right),
                    Self::Multiply => Value::Double(left * right),
                    Self::Divide => Value::Double(left / right),
                    _ => Value::Bool(self.compares(&left, &right)),
                }
            }
        })
    }

    fn compares<T: PartialOrd>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::LessOrEqual => left <= right,
            Self::GreaterOrEqual => left >= right,
            Self::Less => left < right,
            Self::Greater => left > right,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTED: Counts = Counts {
        requests: 20,
        total_successes: 9,
        total_failures: 11,
        consecutive_successes: 0,
        consecutive_failures: 4,
    };

    fn holds(text: &str) -> bool {
        Trip::parse(text)
            .unwrap_or_else(|fault| panic!("{text}: {fault}"))
            .holds(&COUNTED)
    }

    fn fault(text: &str) -> (usize, String) {
        let fault = Trip::parse(text).expect_err(text);
        (fault.column, fault.message)
    }

    #[test]
    fn what_dapr_users_write_is_understood() {
        for text in [
            "consecutiveFailures >= 3",
            "consecutiveFailures > 3",
            "totalFailures > 10 && requests >= 20",
            "totalFailures * 100 / requests > 50",
            "double(totalFailures) / double(requests) > 0.5",
            "consecutiveFailures > 100 || (requests > 10 && totalFailures > totalSuccesses)",
            "  !(consecutiveSuccesses > 0)\t",
            "true",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            "consecutiveFailures > 5",
            "totalFailures > 10 && requests > 20",
            // Integers stay integers, so this never trips before all fail.
            "(totalFailures / requests) > 0.5",
            "false",
        ] {
            assert!(!holds(text), "{text}");
        }
        assert_eq!(Trip::default().text, "consecutiveFailures > 5");
    }

    #[test]
    fn each_count_has_its_name() {
        for text in [
            "requests == 20",
            "totalSuccesses == 9",
            "totalFailures == 11",
            "consecutiveSuccesses == 0",
            "consecutiveFailures == 4",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    #[test]
    fn operators_bind_as_in_cel() {
        for text in [
            "1 + 2 * 3 == 7",
            "(1 + 2) * 3 == 9",
            "10 - 4 - 3 == 3",
            "100 / 10 / 5 == 2",
            "7 % 4 * 2 == 6",
            "-2 + 3 == 1",
            "2 - -3 == 5",
            "-7 / 2 == -3",
            "-7 % 2 == -1",
            "true || false && false",
            "!false && true",
            "!!true",
            "1 < 2 == true",
            "1 + 1 < 3 && 4 <= 4 && 5 >= 5 && 6 > 5 && 1 != 2",
            "false != true",
            "1.5 + 1.5 == 3",
            "2.5 - .5 == 2.0",
            "1e3 == 1000",
            "3.0 * 2.0 / 4.0 == 1.5",
            "int(2.9) == 2",
            "int(-2.9) == -2",
            "double(1) == 1.0",
            "int(7) == 7",
            "-1.5 < 0",
            "2 > 1.5",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_computed_does_not_trip() {
        for text in [
            "1 / 0 == 0",
            "1 / 0 != 0",
            "1 % 0 == 0",
            "!(1 / 0 == 0)",
            "9223372036854775807 + 1 > 0",
            "9223372036854775807 + 1 < 0",
            "-9223372036854775807 - 2 < 0",
            "9223372036854775807 * 2 != 0",
            "(-9223372036854775807 - 1) / -1 != 0",
            "(-9223372036854775807 - 1) % -1 == 0",
            "-(-9223372036854775807 - 1) != 0",
            "int(1e300) != 0",
            "int(0.0 / 0.0) == 0",
            "0.0 / 0.0 == 0.0 / 0.0",
            "1 / 0 == 0 && true",
            "1 / 0 == 0 || false",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn side_that_decides_gets_over_an_error_on_the_other() {
        assert!(holds("1 / 0 == 0 || true"));
        assert!(holds("true || 1 / 0 == 0"));
        assert!(holds("!(1 / 0 == 0 && false)"));
        assert!(holds("!(false && 1 / 0 == 0)"));
    }

    #[test]
    fn count_beyond_an_integer_does_not_trip() {
        let counts = Counts {
            requests: u64::MAX,
            ..COUNTED
        };

        assert!(!Trip::parse("requests > 0").unwrap().holds(&counts));
    }

    #[test]
    fn every_fault_names_its_column_and_what_was_expected() {
        for (text, column, message) in [
            ("", 1, "expected a number, a count or `(`, found the end"),
            ("1 <", 4, "expected a number, a count or `(`, found the end"),
            ("1 < > 2", 5, "expected a number, a count or `(`, found `>`"),
            ("1 < 2 3", 7, "expected an operator or the end, found `3`"),
            ("1 = 2", 3, "expected an operator or the end, found `=`"),
            ("1 < 2)", 6, "expected an operator or the end, found `)`"),
            ("(1 < 2", 7, "expected an operator or `)`, found the end"),
            ("ü", 1, "expected a number, a count or `(`, found `ü`"),
            (
                "true ? 1 : 2",
                6,
                "expected an operator or the end, found `?`",
            ),
            ("double 1 > 0", 8, "expected `(`, found `1`"),
            ("1 < 5s", 5, "`5s` is no number that fits"),
            ("1 < 1.2.3", 5, "`1.2.3` is no number that fits"),
            ("1 < .", 5, "`.` is no number that fits"),
            (
                "9223372036854775808 > 1",
                1,
                "`9223372036854775808` is no number that fits",
            ),
            ("1e999 > 1", 1, "`1e999` is no number that fits"),
            (
                "1 < failures",
                5,
                "there is no `failures`; there are requests, totalSuccesses, totalFailures, \
                 consecutiveSuccesses and consecutiveFailures",
            ),
        ] {
            assert_eq!(fault(text), (column, message.to_owned()), "{text}");
        }
        assert_eq!(
            Trip::parse("1 <").unwrap_err().to_string(),
            "column 4: expected a number, a count or `(`, found the end"
        );
    }

    #[test]
    fn types_are_checked_at_load() {
        for (text, column, message) in [
            (
                " consecutiveFailures",
                2,
                "expected a condition, which is true or false, found an integer",
            ),
            (
                "1.5",
                1,
                "expected a condition, which is true or false, found a double",
            ),
            ("1 && 2", 3, "`&&` cannot take an integer and an integer"),
            (
                "true || 2",
                6,
                "`||` cannot take a condition and an integer",
            ),
            (
                "true + 1 > 2",
                6,
                "`+` cannot take a condition and an integer",
            ),
            ("1 < true", 3, "`<` cannot take an integer and a condition"),
            (
                "true < false",
                6,
                "`<` cannot take a condition and a condition",
            ),
            ("1 < 2 < 3", 7, "`<` cannot take a condition and an integer"),
            (
                "1 == true",
                3,
                "`==` cannot take an integer and a condition",
            ),
            (
                "requests * 0.5 > 1",
                10,
                "`*` cannot take an integer and a double; convert one with double() or int()",
            ),
            ("1.5 % 1.0 == 0", 5, "`%` cannot take a double and a double"),
            ("!requests", 1, "`!` cannot take an integer"),
            ("-true", 1, "`-` cannot take a condition"),
            ("int(true) > 0", 1, "`int` cannot take a condition"),
        ] {
            assert_eq!(fault(text), (column, message.to_owned()), "{text}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let nested = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
        assert!(holds(&nested(31)));
        assert_eq!(fault(&nested(32)), (33, "nested deeper than 32".to_owned()));
        assert_eq!(
            fault(&format!("{}true", "!".repeat(1000))).1,
            "nested deeper than 32"
        );
        // A long row is not deep.
        assert!(holds(&format!("1{} > 200", " + 1".repeat(200))));
        assert_eq!(
            fault(&" ".repeat(1025)).1,
            "the expression is longer than 1024 bytes"
        );
    }

    #[test]
    fn text_survives_serde() {
        use serde::de::{IntoDeserializer, value::Error};

        let read =
            |text: &str| Trip::deserialize(IntoDeserializer::<Error>::into_deserializer(text));

        assert_eq!(
            read("requests > 1"),
            Ok(Trip::parse("requests > 1").unwrap())
        );
        assert_eq!(
            read("requests").unwrap_err().to_string(),
            "trip: column 1: expected a condition, which is true or false, found an integer"
        );
    }
}
