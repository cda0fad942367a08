//! The trainer against a slow reference that counts all pairs again for every merge.

use rustbpe::{count_words, token_bytes, train_merges, Error, Splitter, WordCounts};
use std::collections::BTreeMap;
use std::sync::Arc;

type Pair = (u32, u32);

fn slow_merges(words: &[(Vec<u8>, u64)], num_merges: usize) -> Vec<Pair> {
    let mut words: Vec<(Vec<u32>, u64)> =
        words.iter().map(|(word, count)| (word.iter().map(|&byte| byte.into()).collect(), *count)).collect();
    let mut merges = Vec::new();
    while merges.len() < num_merges {
        let mut counts: BTreeMap<Pair, u64> = BTreeMap::new();
        for (word, count) in &words {
            word.windows(2).for_each(|pair| *counts.entry((pair[0], pair[1])).or_insert(0) += count);
        }
        // `max_by_key` returns the last maximum: in reverse order the lowest pair.
        let Some((&best, _)) = counts.iter().rev().max_by_key(|(_, &count)| count) else { break };
        let new = 256 + merges.len() as u32;
        for (word, _) in &mut words {
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) == best {
                    word.splice(at..at + 2, [new]);
                }
                at += 1;
            }
        }
        merges.push(best);
    }
    merges
}

fn random_below(state: &mut u64, bound: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % bound
}

#[test]
fn same_merges_as_the_slow_reference() {
    let mut state = 3;
    for round in 0..60 {
        let letters = 1 + round % 5;
        let words: BTreeMap<Vec<u8>, u64> = (0..1 + random_below(&mut state, 12))
            .map(|_| {
                let length = 1 + random_below(&mut state, 30);
                let word = (0..length).map(|_| b'a' + random_below(&mut state, letters) as u8).collect();
                (word, 1 + random_below(&mut state, 4))
            })
            .collect();
        let words: Vec<_> = words.into_iter().collect();
        let counts: WordCounts = words.iter().map(|(word, count)| (&word[..], *count)).collect();
        let merges = train_merges::<Error>(&counts, 300, |_| Ok(())).unwrap();
        assert_eq!(merges, slow_merges(&words, 44), "{words:?}");
        let mut tokens = token_bytes(&merges);
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), 256 + merges.len(), "a duplicate token: {words:?}");
    }
}

#[test]
fn counts_need_64_bits() {
    let counts: WordCounts =
        [(&b"ab"[..], u64::from(u32::MAX)), (b"ab", 5), (b"cd", u64::from(u32::MAX))].into_iter().collect();
    assert_eq!(train_merges::<Error>(&counts, 258, |_| Ok(())).unwrap(), [(97, 98), (99, 100)]);
}

#[test]
fn merges_do_not_depend_on_the_number_of_threads() {
    let splitter = Splitter::new(r"\w+|\W").unwrap();
    let texts: Vec<String> = (0..500).map(|i| format!("word{} and {} words", i % 7, i * i)).collect();
    let trained: Vec<_> = [1, 2, 7]
        .map(|num_threads| {
            let mut batches = texts.chunks(13).map(|batch| batch.to_vec());
            let counts = count_words::<_, Error>(&splitter, num_threads, |_| Ok(batches.next()), |_| Ok(())).unwrap();
            train_merges::<Error>(&counts, 400, |_| Ok(())).unwrap()
        })
        .into();
    assert!(trained[0] == trained[1] && trained[1] == trained[2]);
}

#[test]
fn errors_stop_the_training() {
    let none = WordCounts::default();
    assert_eq!(train_merges::<Error>(&none, 300, |_| Ok(())), Err(Error::EmptyCorpus));
    assert_eq!(train_merges::<Error>(&none, 255, |_| Ok(())), Err(Error::VocabSize(255)));
    let counts: WordCounts = [(&b"abcd"[..], 1)].into_iter().collect();
    let stop = |merges| if merges == 2 { Err(Error::Split("stop".into())) } else { Ok(()) };
    assert_eq!(train_merges(&counts, 300, stop), Err(Error::Split("stop".into())));
    let at_once = |_| Err(Error::Split("stop".into()));
    assert_eq!(train_merges(&counts, 256, at_once), Err(Error::Split("stop".into())));
    let splitter = Splitter::new(r"(x+)+\1y").unwrap();
    let mut batches = std::iter::repeat_with(|| vec!["x".repeat(5000)]).take(20);
    assert!(matches!(count_words::<_, Error>(&splitter, 2, |_| Ok(batches.next()), |_| Ok(())), Err(Error::Split(_))));
    let mut calls = 0;
    let failing = |_: Vec<Arc<Vec<&str>>>| {
        calls += 1;
        if calls < 5 {
            Ok(Some(vec!["a b"]))
        } else {
            Err(Error::EmptyCorpus)
        }
    };
    assert!(count_words(&Splitter::new(r"\w").unwrap(), 2, failing, |_| Ok(())).is_err());
}
