//! Tables on the console whose last line gives the sums of their columns.

/// What is wrong with the sums in the lines that hold `text`: each number in them must be the sum of those
/// above it, in the lines directly before that have at least as many, the last ones taken. `None` if all
/// are right, and there is one.
pub(super) fn fault(lines: &[&str], text: &str) -> Option<String> {
    let mut found = false;
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(text)) {
        let sums = numbers(line);
        let rows = lines.get(..at).unwrap_or(&[]).iter().rev().map(|row| numbers(row));
        let rows: Vec<_> =
            rows.take_while(|row| !sums.is_empty() && row.len() >= sums.len()).collect();
        let mut computed = vec![0_u64; sums.len()];
        for row in &rows {
            for (sum, number) in computed.iter_mut().rev().zip(row.iter().rev()) {
                *sum = sum.saturating_add(*number);
            }
        }
        if rows.is_empty() || computed != sums {
            return Some(format!("sums of {} lines are {computed:?}: {line}", rows.len()));
        }
        found = true;
    }
    (!found).then(|| format!("not seen: {text}"))
}

/// The words of a line that are numbers.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn sums_are_those_of_the_lines_above() {
        let table = [
            "> mem",
            "  2 pages  8 KiB  free",
            "  3 pages 12 KiB  stage-2",
            "  5 pages 20 KiB  in all",
        ];
        assert_eq!(fault(&table, "in all"), None);
        let numbered = [
            "core   kick  other",
            "0        10      1",
            "1        20      2",
            "in all   30      3",
        ];
        assert_eq!(fault(&numbered, "in all"), None);
    }

    #[test]
    fn wrong_sums_and_missing_tables_are_found() {
        for table in [
            &["2 a", "2 b", "5 in all"][..],
            &["2 a 1", "3 b 1", "5 in all 3"],
            &["5 in all"],
            &["a", "in all"],
            &["1 a", "1 in all", "x", "1 a", "2 in all"],
            &["1 a"],
        ] {
            assert!(fault(table, "in all").is_some(), "{table:?}");
        }
    }
}
