//! Usage → money: what a reply costs, what of it is charged, and what of it nobody pays.

use super::{Delivery, End, is_by_token};
use crate::flow::loss::Losses;
use crate::flow::pay::Money;
use crate::flow::price::Used;
use crate::journal::Settlement;
use crate::money::{Atoms, Usd};
use crate::openai::usage::Verdict;
use crate::rules::plan::MissingUsage;
use crate::tokens::Vocabulary;
use crate::usage::{Usage, UsageSource};

impl Delivery {
    fn bill(&self, verdict: &Verdict, usage: &Usage, source: UsageSource) -> Option<Usd> {
        // What the backend says of the whole answer is not said of a part of it.
        let stated = verdict.stated.filter(|_| source == UsageSource::Reported && verdict.usage == Some(*usage));
        // Messages say what the prompt was when they begin, and of several choices the first that ends says it.
        let counted = source == UsageSource::Counted && verdict.begun.or(verdict.usage).is_none();
        self.quoted.bill(&self.receipt.rail, &Used { usage: *usage, served: verdict.tier, counted }, stated)
    }

    /// What the reported usage costs in atoms of the rail.
    pub(super) fn charge(&self, verdict: &Verdict) -> Option<Atoms> {
        self.bill(verdict, &verdict.usage?, UsageSource::Reported)?.to_atoms(self.receipt.decimals)
    }

    /// What was used when the answer ended early and the backend did not say: the prompt, and what left. In tokens, or about as many
    /// where bytes are all that can be counted: a bound is to be covered, not to be charged.
    fn counted(&self, verdict: &Verdict) -> Usage {
        let prompt = self.quoted.parts.prompt_about.unwrap_or(0);
        let completion = match self.money {
            Money::Lease(_) | Money::Promise(_) => self.meter.counted().about,
            Money::Hold(_) | Money::None => verdict.delivered_chunks,
        };
        Usage { completion, ..verdict.begun.unwrap_or(Usage { prompt, ..Usage::default() }) }
    }

    /// Usage → what it would have cost; counters and alarms. Pure apart from them.
    pub(super) fn settle(&mut self, verdict: &Verdict, end: End) {
        let pool = self.receipt.pool.clone();
        let by_what_left = end.is_cut() && self.ending.is_none() && !self.drained && is_by_token(&self.money);
        let (usage, source, label) = match (verdict.usage, end) {
            // The choices that had not ended have left, too, as far as they came.
            (Some(usage), _) if by_what_left && verdict.partial => {
                let out = self.meter.counted().about;
                let waits = self.meter.waiting().is_some();
                let completion = if waits { out } else { usage.completion.max(out) };
                (Some(Usage { completion, ..usage }), UsageSource::Counted, "counted")
            }
            // A running count may be ahead of what was let out.
            (Some(usage), _) if by_what_left => {
                let counted = usage.completion.min(self.meter.counted().about);
                let completion = self.meter.delivered().map_or(counted, |out| out.completion.min(usage.completion));
                (Some(Usage { completion, ..usage }), UsageSource::Reported, "reported")
            }
            (Some(usage), _) => (Some(usage), UsageSource::Reported, "reported"),
            (None, end)
                if end.is_cut()
                    && (verdict.delivered_chunks > 0
                        || end == End::ClientGone && self.begun && is_by_token(&self.money)) =>
            {
                (Some(self.counted(verdict)), UsageSource::Counted, "counted")
            }
            (None, _) if self.surface().is_flat() => (None, UsageSource::Missing, "flat"),
            (None, _) => (None, UsageSource::Missing, if verdict.absurd { "absurd" } else { "missing" }),
        };
        self.toll.metrics.usage.with_label_values(&[pool.as_str(), label]).inc();
        if verdict.absurd && label != "absurd" {
            self.toll.metrics.usage.with_label_values(&[pool.as_str(), "absurd"]).inc();
        }
        if let (Some(usage), UsageSource::Reported, End::Whole) = (usage, source, end) {
            self.compare(&usage);
        }
        if let (true, Some(who)) = (verdict.absurd, &self.who) {
            who.absurd_usage();
        }
        if label == "missing" || verdict.absurd {
            let label = if verdict.absurd { "absurd" } else { label };
            tracing::warn!(pool = %pool, kind = label, request = %self.receipt.request, "the backend reported no usable usage");
        }
        if let Some(usage) = usage {
            let model = self.receipt.model.as_str();
            let tokens = |kind: &str, n: u64| self.toll.metrics.tokens.with_label_values(&[model, kind]).inc_by(n);
            tokens("prompt", usage.prompt);
            tokens("completion", usage.completion);
            let parts = [
                ("cached", usage.cached),
                ("cache_write", usage.cache_write),
                ("reasoning", usage.reasoning),
                ("audio_input", usage.audio_input),
                ("audio_output", usage.audio_output),
                ("image_input", usage.image_input),
            ];
            // Most models never have most of them.
            parts.into_iter().filter(|(_, n)| *n > 0).for_each(|(kind, n)| tokens(kind, n));
            self.receipt.actual_usd = self.bill(verdict, &usage, source);
        }
        self.receipt.usage = usage;
        self.receipt.usage_source = Some(source);
        let well = self.ended_well(verdict, end);
        self.charge_lease(well);
        self.charge_promise(well);
        self.count_exchange();
        self.settled = true;
    }

    /// Whether the answer came to an end of its own: only then is a figure missing that should be there. Some backends end a stream
    /// that failed with an error, some without a word.
    fn ended_well(&self, verdict: &Verdict, end: End) -> bool {
        let said_so = verdict.finished || verdict.saw_done || !self.streams() || self.surface().is_flat();
        end == End::Whole && !verdict.failed && said_so
    }

    /// What the backend reports against what was counted here: if they part, one of the two counts wrong, or counts something else.
    fn compare(&self, usage: &Usage) {
        let parts = &self.quoted.parts;
        let prompt = parts.prompt_tokens.filter(|_| parts.counted_by != Some(Vocabulary::Bytes.name()));
        for (kind, reported, counted) in
            [("prompt", usage.prompt, prompt), ("completion", usage.completion, self.meter.by_vocabulary())]
        {
            if let Some(ratio) = counted.and_then(|counted| crate::metrics::ratio(reported, counted)) {
                let model = self.receipt.model.as_str();
                self.toll.metrics.usage_drift.with_label_values(&[model, kind]).observe(ratio);
            }
        }
    }

    /// What is to be taken of what was promised: what was used, never more. The rest is the operator's loss.
    fn charge_promise(&mut self, well: bool) {
        let Money::Promise(promise) = &self.money else { return };
        let decimals = self.receipt.decimals;
        let used = match self.receipt.actual_usd {
            Some(usd) => Some(usd.to_atoms(decimals).unwrap_or(promise.terms().amount)),
            None if well && self.quoted.allowed.route.tier.missing_usage == MissingUsage::Ceiling => {
                Some(promise.terms().amount)
            }
            None => None,
        };
        let due = promise.due(used);
        if promise.is_by_usage() && used.is_some_and(|used| used > due) {
            tracing::warn!(receipt = %self.receipt.id, "what was used is above what the payer authorized");
        }
        self.receipt.charged = due;
        self.receipt.charged_usd = due.to_usd(decimals).unwrap_or(Usd::ZERO);
        self.receipt.settlement = Some(Settlement::Pending);
    }

    /// What is taken out of the channel: what was used, never more than is leased. The rest is the operator's loss.
    fn charge_lease(&mut self, well: bool) {
        let Money::Lease(lease) = &self.money else { return };
        let (cap, decimals) = (lease.held().cap, self.receipt.decimals);
        let cost = match self.receipt.actual_usd {
            Some(usd) => usd.to_atoms(decimals).unwrap_or(cap),
            None if well && self.quoted.allowed.route.tier.missing_usage == MissingUsage::Ceiling => cap,
            None => Atoms(0),
        };
        self.receipt.charged = cost.min(cap);
        self.receipt.charged_usd = self.receipt.charged.to_usd(decimals).unwrap_or(Usd::ZERO);
    }

    /// What was taken out of the channel, and what of the cost could not be: counters. Nothing, where another gate has taken it.
    pub(super) fn count_charge(&mut self) {
        let Money::Lease(lease) = &self.money else { return };
        if lease.is_anothers() || std::mem::replace(&mut self.charge_counted, true) {
            return;
        }
        let (metrics, rail, decimals) = (&self.toll.metrics, self.receipt.rail.as_str(), self.receipt.decimals);
        let charged = self.receipt.charged;
        let cost = self.receipt.actual_usd.and_then(|usd| usd.to_atoms(decimals)).unwrap_or(charged);
        let lost = Atoms(cost.0.saturating_sub(charged.0)).to_usd(decimals).unwrap_or(Usd::ZERO);
        let count = |counter: &prometheus::CounterVec, usd| {
            counter.with_label_values(&[rail]).inc_by(crate::metrics::shown(usd));
        };
        count(&metrics.charged_usd, self.receipt.charged_usd);
        count(&metrics.session_loss_usd, lost);
    }

    /// Loss that the operator carries, as a line for the store's running totals.
    pub(super) fn absorbed(&mut self) -> Vec<(String, u64, Usd)> {
        // Whoever has not paid by now pays what was used, and leaves nothing to carry.
        let Money::Hold(hold) = &mut self.money else { return Vec::new() };
        let Some(room) = hold.take_room() else { return Vec::new() };
        let lost = self.receipt.actual_usd.unwrap_or(Usd::ZERO).less(self.receipt.charged_usd);
        let (day, lost) = room.lose(lost);
        if lost == Usd::ZERO {
            return Vec::new();
        }
        let tier = &self.receipt.tier;
        self.toll.metrics.absorbed_usd.with_label_values(&[tier.as_str()]).inc_by(crate::metrics::shown(lost));
        vec![(Losses::tally_name(tier), day, lost)]
    }
}
