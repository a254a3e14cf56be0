//! The waits of one exchange: for a backend, and for a client that may leave meanwhile.

use super::Outcome;
use super::open::Opened;
use crate::refusal::Refusal;
use crate::rules::plan::Timeouts;
use bytes::Bytes;
use pingora::proxy::Session;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Why the exchange cannot go on.
#[derive(Debug)]
pub(super) enum Cut {
    ClientGone,
    Refused(Refusal),
}

impl From<Cut> for Outcome {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::ClientGone => Self::ClientGone,
            Cut::Refused(refusal) => Self::Failed(refusal),
        }
    }
}

/// Who asked, as long as it is there.
pub(super) struct Client<'a> {
    /// Its connection.
    pub session: &'a mut Session,
    /// What is waited for is of use without it: it is billed whether somebody listens or not.
    pub is_dispensable: bool,
    /// It has left.
    pub left: bool,
}

impl<'a> Client<'a> {
    pub fn of(session: &'a mut Session) -> Self {
        Self { session, is_dispensable: false, left: false }
    }

    /// Completes when the client has left and nothing is left to wait for.
    pub async fn gone(&mut self) {
        if !self.left {
            gone(self.session).await;
            self.left = true;
        }
        if self.is_dispensable {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits of one exchange.
pub(super) struct Clock {
    /// Of the pool that is asked.
    pub timeouts: Timeouts,
    /// When the whole must be over.
    pub end: Instant,
    /// After this nothing more may be taken or written, however slowly the client reads.
    last: Option<Instant>,
}

/// How long one write to the client may take.
pub(super) struct Patience {
    write: Duration,
    last: Option<Instant>,
}

impl Patience {
    /// When a write that begins now is given up.
    pub fn until(&self) -> Instant {
        let until = Instant::now() + self.write;
        self.last.map_or(until, |last| until.min(last))
    }
}

impl Clock {
    /// The whole may take as long as `timeouts` say, and no longer than `within`, whose end no slow reader puts off.
    pub fn start(timeouts: Timeouts, within: Option<u64>) -> Self {
        let total_seconds = within.unwrap_or(u64::MAX).min(timeouts.total_seconds);
        let (end, last) = (Self::after(total_seconds), within.map(Self::after));
        Self { timeouts: Timeouts { total_seconds, ..timeouts }, end, last }
    }

    pub fn after(seconds: u64) -> Instant {
        // A day bounds what the arithmetic of clocks can be asked; rules are far below.
        Instant::now() + Duration::from_secs(seconds.min(86_400))
    }

    /// Another pool has waits of its own, within the time of the whole.
    pub fn turn_to(&mut self, timeouts: Timeouts) {
        self.timeouts = Timeouts { total_seconds: self.timeouts.total_seconds, ..timeouts };
    }

    pub fn patience(&self) -> Patience {
        Patience { write: Duration::from_secs(self.timeouts.idle_seconds), last: self.last }
    }

    /// Why nothing more may be taken, when that is so.
    pub fn ran_out(&self) -> Option<Refusal> {
        let is_late = self.last.is_some_and(|last| Instant::now() >= last);
        is_late.then_some(Refusal::UpstreamTimeout { seconds: self.timeouts.total_seconds })
    }

    /// The wait for the first byte of an answer. The head of one that does not stream (`is_whole`) comes when all of it is there.
    pub fn first_byte_seconds(&self, is_whole: bool) -> u64 {
        let Timeouts { first_byte_seconds, total_seconds, .. } = self.timeouts;
        if is_whole { total_seconds } else { first_byte_seconds }
    }

    /// When a wait of `seconds` that begins now is over, and how many that are then, or were for the whole.
    pub fn until(&self, seconds: u64) -> (Instant, u64) {
        self.by(Self::after(seconds), seconds)
    }

    fn by(&self, own: Instant, seconds: u64) -> (Instant, u64) {
        if own < self.end { (own, seconds) } else { (self.end, self.timeouts.total_seconds) }
    }

    /// The same for the wait for the next bytes of an answer.
    pub fn silence(&self, may_be_long: bool) -> (Instant, u64) {
        self.until(if may_be_long { self.timeouts.total_seconds } else { self.timeouts.idle_seconds })
    }

    /// The same for the first bytes of a body whose head has come: some backends send it at once and read the prompt then. They have what
    /// is left of the wait of `seconds` that began at `sent_at`, and not less than others have within an answer.
    pub fn first_bytes(&self, sent_at: Instant, seconds: u64) -> (Instant, u64) {
        let (until, idle) = self.silence(false);
        let from_the_start = sent_at + Duration::from_secs(seconds.min(86_400));
        if from_the_start <= until { (until, idle) } else { self.by(from_the_start, seconds) }
    }

    pub fn alarm(&self) -> Sleep {
        tokio::time::sleep_until(self.until(self.timeouts.idle_seconds).0)
    }
}

/// Runs `work` unless the client leaves first, or `seconds` pass, or the whole exchange has had its time.
pub(super) async fn watched<T>(
    client: &mut Client<'_>,
    clock: &Clock,
    seconds: u64,
    work: impl Future<Output = T>,
) -> Result<T, Cut> {
    let (until, seconds) = clock.until(seconds);
    tokio::select! { biased;
        done = work => Ok(done),
        () = client.gone() => Err(Cut::ClientGone),
        () = tokio::time::sleep_until(until) => Err(Cut::Refused(Refusal::UpstreamTimeout { seconds })),
    }
}

/// Completes when the client leaves. A client that sends more bytes after its body (pipelining, which is off) counts
/// as gone: what it sent has been taken off its connection and could not be served any more.
pub(in crate::edge) async fn gone(session: &mut Session) {
    let _ = session.as_downstream_mut().read_body_or_idle(true).await;
}

/// One alarm for all the waits of a stream: setting it anew for each event would cost more than reading the event. It stays set for
/// the end of an earlier wait, and is put off when it rings too soon.
fn rings(mut alarm: Pin<&mut Sleep>, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if until < alarm.deadline() {
        alarm.as_mut().reset(until);
    }
    loop {
        ready!(alarm.as_mut().poll(cx));
        if until <= alarm.deadline() {
            return Poll::Ready(());
        }
        alarm.as_mut().reset(until);
    }
}

/// The next bytes of the reply, unless they take longer than till then; `None` at its proper end. `gone`: nobody waits for them any more.
pub(super) async fn next(
    gone: impl Future<Output = ()>,
    opened: &mut Opened,
    (until, seconds): (Instant, u64),
    mut alarm: Pin<&mut Sleep>,
) -> Result<Option<Bytes>, Cut> {
    let mut read = pin!(opened.session.read_response_body());
    let mut gone = pin!(gone);
    let read = poll_fn(|cx| {
        if let Poll::Ready(read) = read.as_mut().poll(cx) {
            return Poll::Ready(Ok(read));
        }
        if gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Cut::ClientGone));
        }
        rings(alarm.as_mut(), until, cx).map(|()| Err(Cut::Refused(Refusal::UpstreamTimeout { seconds })))
    });
    read.await?.map_err(|_| {
        Cut::Refused(Refusal::UpstreamFailed { why: "the connection was lost in the middle of its answer" })
    })
}

/// Runs `work` unless the client leaves first.
pub(super) async fn unless_gone<T>(session: &mut Session, mut work: impl Future<Output = T> + Unpin) -> Result<T, Cut> {
    let mut gone = pin!(gone(session));
    poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => gone.as_mut().poll(cx).map(|()| Err(Cut::ClientGone)),
    })
    .await
}
