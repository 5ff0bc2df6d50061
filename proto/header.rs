//! Names of headers, as servers read them.
//!
//! Those that hand headers to programs as variables, as CGI and its heirs do, write `_` for `-`: to them `x_tenant` and `x-tenant` are
//! one. So whoever takes a header away takes its twins away, too.

/// Whether servers may read two names in small letters as one.
pub fn same_name(name: &str, other: &str) -> bool {
    name.len() == other.len() && same_beginning(name, other)
}

/// Whether servers may read a name in small letters as one that begins so.
pub fn same_beginning(name: &str, beginning: &str) -> bool {
    let hyphen = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let (name, beginning) = (name.as_bytes(), beginning.as_bytes());
    name.len() >= beginning.len()
        && (name.iter().zip(beginning)).all(|(one, other)| hyphen(*one) == hyphen(*other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_make_no_difference_and_all_else_does() {
        for twin in ["x-a-b", "x_a_b", "x-a_b", "x_a-b"] {
            assert!(same_name(twin, "x-a-b") && same_name("x_a-b", twin));
            assert!(same_beginning(twin, "x-a"));
        }
        for other in ["x-a-c", "x-a-", "x-a-bc", "xa-b", "", "x.a.b"] {
            assert!(!same_name(other, "x-a-b"), "{other}");
        }
        assert!(!same_beginning("x-", "x-a"));
    }
}
