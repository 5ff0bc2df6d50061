//! Links in Markdown lead to a file of the project, and to a heading in it.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use super::{files, read, root};

/// A page without its code, in which brackets mean something else.
fn prose(text: &str) -> String {
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    });
    let lines: Vec<&str> = lines.collect();
    let text = lines.join("\n");
    let parts = text.split('`').step_by(2);
    parts.collect::<Vec<_>>().join("`")
}

/// Where the links of a page lead.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let after = prose.split("](").skip(1);
    after
        .filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()))
        .filter(|link| !link.contains("://"))
        .collect()
}

/// What links call the headings of a page: small letters, and of all else only hyphens and `_`.
fn anchors(text: &str) -> HashSet<String> {
    let mut in_block = false;
    let headings = text.lines().filter(|line| {
        in_block ^= line.starts_with("```");
        !in_block && line.starts_with('#')
    });
    let mut anchors = HashSet::new();
    for heading in headings {
        let title = heading.trim_start_matches('#').trim();
        let kept = title.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ if letter.is_alphanumeric() => Some(letter.to_ascii_lowercase()),
            _ => None,
        });
        let anchor: String = kept.collect();
        assert!(anchors.insert(anchor), "two headings read `{title}`");
    }
    anchors
}

/// Takes out `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(plain.pop(), "{} leaves the project", path.display()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut checked = 0;
    let mut broken = Vec::new();
    for page in files(".md") {
        for link in links(&read(&page)) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.clone(),
                file => plain(&page.parent().unwrap().join(file)),
            };
            let leads = root().join(&target).exists()
                && (anchor.is_empty() || anchors(&read(&target)).contains(anchor));
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
            checked += 1;
        }
    }

    assert!(checked > 50, "links were found: {checked}");
    assert_eq!(broken, [""; 0]);
}

#[test]
fn contents_list_every_page_once() {
    let summary = read(Path::new("docs/SUMMARY.md"));

    let mut listed: Vec<PathBuf> = links(&summary)
        .iter()
        .map(|it| Path::new("docs").join(it))
        .collect();
    listed.sort();

    let pages = files(".md")
        .into_iter()
        .filter(|page| page.starts_with("docs"));
    let pages: Vec<PathBuf> = pages.filter(|page| !page.ends_with("SUMMARY.md")).collect();
    assert_eq!(listed, pages);
}
