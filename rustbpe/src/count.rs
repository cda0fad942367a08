//! Counts distinct words, in as many threads as asked for.

use crate::{Error, Splitter, WordCounts};
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender};
use std::sync::Mutex;
use std::thread;

/// Count the words of all texts. `next_batch` is called on this thread until it gives `None`; the counting goes on
/// meanwhile in `num_threads` others. It is handed the batches that are done with, so that the caller decides where
/// they are dropped (Python's objects want Python's lock). Its error, or the splitter's, ends the counting.
///
/// ```
/// let splitter = rustbpe::Splitter::new(r"\w+").unwrap();
/// let mut batches = vec![vec!["a b"], vec!["b"]].into_iter();
/// let counts = rustbpe::count_words::<_, rustbpe::Error>(&splitter, 2, |_| Ok(batches.next())).unwrap();
/// let mut counts: Vec<_> = counts.iter().collect();
/// counts.sort();
/// assert_eq!(counts, [(b"a".to_vec(), 1), (b"b".to_vec(), 2)]);
/// ```
pub fn count_words<T, E>(
    splitter: &Splitter,
    num_threads: usize,
    mut next_batch: impl FnMut(Vec<Vec<T>>) -> Result<Option<Vec<T>>, E>,
) -> Result<WordCounts, E>
where
    T: AsRef<str> + Send,
    E: From<Error>,
{
    let num_threads = num_threads.max(1);
    let (to_worker, inbox) = sync_channel::<Vec<T>>(num_threads);
    let inbox = Mutex::new(inbox);
    let (done, spent) = channel();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..num_threads)
            .map(|_| {
                let (inbox, done) = (&inbox, done.clone());
                scope.spawn(move || count_batches(splitter, inbox, &done))
            })
            .collect();
        let mut outcome = Ok(());
        loop {
            match next_batch(spent.try_iter().collect()) {
                // A worker that failed still empties the queue, so this cannot block for ever.
                Ok(Some(batch)) => to_worker.send(batch).expect("workers outlive the queue"),
                Ok(None) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        drop(to_worker);
        let mut total = WordCounts::default();
        for worker in workers {
            match worker.join().expect("a worker does not panic") {
                Ok(counts) if total.is_empty() => total = counts,
                Ok(counts) => total.merge(counts),
                Err(error) => outcome = outcome.and(Err(error.into())),
            }
        }
        outcome.map(|()| total)
    })
}

fn count_batches<T: AsRef<str>>(
    splitter: &Splitter,
    inbox: &Mutex<Receiver<Vec<T>>>,
    done: &Sender<Vec<T>>,
) -> Result<WordCounts, Error> {
    let mut counts = WordCounts::default();
    let mut outcome = Ok(());
    loop {
        let received = inbox.lock().expect("no worker panics while it holds the queue").recv();
        let Ok(batch) = received else { break };
        for text in &batch {
            if outcome.is_ok() {
                let bytes = text.as_ref().as_bytes();
                outcome = splitter.split(text.as_ref(), |bounds| {
                    bounds.windows(2).for_each(|word| counts.add(bytes, word[0], word[1], 1));
                });
            }
        }
        let _ = done.send(batch); // nobody listens once the input has ended
    }
    outcome.map(|()| counts)
}
