//! A step that must not stop half-way. It runs where it is awaited, so that nobody is woken for it; when whoever awaits it goes away, the
//! rest of it runs in a task of its own, and what it came to is dropped there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;

/// Such a step. Its output is `None` when it broke off with a panic. Outside of a runtime there is nobody to finish it.
#[must_use = "it begins when it is awaited, or dropped"]
pub(super) struct Errand<F: Future + Send + 'static>(Option<Pin<Box<F>>>)
where
    F::Output: Send;

impl<F: Future + Send + 'static> Errand<F>
where
    F::Output: Send,
{
    pub fn new(step: F) -> Self {
        Self(Some(Box::pin(step)))
    }
}

impl<F: Future + Send + 'static> Future for Errand<F>
where
    F::Output: Send,
{
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(step) = self.0.as_mut() else { return Poll::Ready(None) };
        // Nothing of a step that broke off is looked at again: it is dropped.
        let polled = catch_unwind(AssertUnwindSafe(|| step.as_mut().poll(cx)));
        let ended = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Some(output),
            Err(_) => None,
        };
        self.0 = None;
        Poll::Ready(ended)
    }
}

impl<F: Future + Send + 'static> Drop for Errand<F>
where
    F::Output: Send,
{
    fn drop(&mut self) {
        if let (Some(step), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(step);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_step_runs_where_it_is_awaited() {
        let asks = tokio::spawn(async {
            let outside = tokio::task::id();
            (outside, Errand::new(async { tokio::task::id() }).await)
        });
        let (outside, inside) = asks.await.unwrap();
        assert_eq!(inside, Some(outside));
    }

    #[tokio::test]
    async fn a_step_goes_on_when_nobody_awaits_it_any_more() {
        for polled in [true, false] {
            let ((go, gate), (done, hears)) = (oneshot::channel::<()>(), oneshot::channel());
            let mut errand = Box::pin(Errand::new(async move {
                gate.await.unwrap();
                done.send(()).unwrap();
            }));
            if polled {
                assert!(futures::poll!(&mut errand).is_pending());
            }
            drop(errand);
            go.send(()).unwrap();
            hears.await.unwrap_or_else(|_| panic!("it stopped half-way; begun: {polled}"));
        }
    }

    #[tokio::test]
    async fn a_step_that_breaks_off_says_so() {
        let broken = Errand::new(async {
            tokio::task::yield_now().await;
            if true {
                panic!("it broke");
            }
        });
        assert_eq!(broken.await, None);
    }
}
