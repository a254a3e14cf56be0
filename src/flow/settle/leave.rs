//! Clients that leave: which backend is heard without them, and what they owe for what never left.

use super::{Delivery, End, is_by_token, says_something};
use crate::catalogue::OnLeave;
use crate::flow::Allowed;
use crate::flow::pay::Money;
use crate::journal::Receipt;
use crate::openai::usage::Verdict;
use crate::refusal::Refusal;
use crate::upstream::Pool;
use bytes::Bytes;

impl Delivery {
    /// Whether a backend of `pool` is to be heard to its end when the client leaves: it will bill its answer, and says how much it was only
    /// then. What is used changes nothing where the amount is taken already: the tokens are better saved.
    pub fn drains(&self, pool: &Pool) -> bool {
        let is_open = matches!(self.money, Money::Lease(_) | Money::Promise(_));
        is_open && pool.profile().ability.on_leave == OnLeave::Drain
    }

    /// The backend has sent the head of an answer, and it is such as was asked for.
    pub fn begins(&mut self) {
        self.begun = true;
    }

    /// Whether the model may still be at work on output that it does not show: it is billed for, so it is waited for.
    pub fn thinks(&self) -> bool {
        let Allowed { model, ask, .. } = &self.quoted.allowed;
        !self.delivered && (model.hidden_output || ask.hides_output())
    }

    /// The client is gone: takes what the backend says to nobody, `None` at its proper end. `false`: enough, hang up. What the payer's
    /// money does not cover is not waited for.
    pub fn overhear(&mut self, chunk: Option<Bytes>) -> bool {
        let Some(chunk) = chunk else {
            self.drained = true;
            return false;
        };
        if self.meter.overhear(chunk).is_err() {
            return false;
        }
        match &self.money {
            Money::Lease(lease) => lease.pays_for(self.meter.seen().about),
            Money::Hold(_) | Money::Promise(_) | Money::None => true,
        }
    }

    /// The client left before the first byte. `heard`: the reply that came whole without it. A backend that had begun to answer bills it:
    /// by usage the payer owes what it reports, at least the prompt; what was promised for a fixed amount is taken for a reply that came,
    /// and can be redeemed. What was held is given back, a few times. The receipt, where one was written.
    pub async fn leave(mut self, heard: Option<Bytes>) -> Option<Receipt> {
        let verdict = match &heard {
            Some(body) => {
                self.read_whole(body).await.unwrap_or_else(|_| Verdict { failed: true, ..Verdict::default() })
            }
            None => {
                self.meter.finish();
                self.meter.verdict()
            }
        };
        let is_sold = self.begun && !verdict.failed && (heard.is_none() || says_something(&verdict));
        let gone = Refusal::Internal { place: "client gone" };
        match std::mem::replace(&mut self.money, Money::None) {
            Money::Hold(hold) if self.asked => {
                self.count_exchange();
                hold.depart(&self.receipt).await.then_some(self.receipt)
            }
            Money::Promise(promise) if is_sold && heard.is_some() && !promise.is_by_usage() => {
                self.count_exchange();
                let price = promise.due(None);
                if let Ok(hold) = promise.take(price, None).await {
                    hold.depart(&self.receipt).await;
                }
                None
            }
            money if is_sold && is_by_token(&money) => {
                self.money = money;
                if !self.settled {
                    self.drained |= heard.is_some();
                    self.settle(&verdict, if heard.is_some() { End::Whole } else { End::ClientGone });
                    self.receipt.complete = false;
                }
                let written = self.write_down().await;
                self.count_charge();
                if let Err(stop) = written {
                    let reason = stop.refusal.code();
                    tracing::error!(receipt = %self.receipt.id, reason, "the receipt of an answer nobody took was not written");
                }
                Some(self.receipt)
            }
            money => {
                self.money = money;
                self.fail(gone).await;
                None
            }
        }
    }
}
