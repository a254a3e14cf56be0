//! What a receipt says about the money before anything was used.

use super::pay::Money;
use crate::ids;
use crate::journal::Settlement;
use crate::money::Atoms;

/// What a receipt says about the money.
pub(super) struct Means {
    pub rail: ids::RailId,
    pub charged: Atoms,
    pub decimals: u8,
    pub reference: String,
    pub transaction: Option<String>,
    pub settlement: Option<Settlement>,
    pub payer: Option<String>,
    pub receipt: Option<String>,
}

impl Means {
    pub fn of(money: &Money) -> Self {
        match money {
            Money::None => Self {
                rail: ids::RailId::from("free"),
                charged: Atoms(0),
                decimals: 6,
                reference: String::new(),
                transaction: None,
                settlement: None,
                payer: None,
                receipt: None,
            },
            Money::Hold(hold) => Self {
                rail: hold.terms().rail.clone(),
                charged: hold.claim().paid_amount(),
                decimals: hold.terms().decimals,
                reference: hold.claim().reference.clone(),
                transaction: hold.transaction().cloned(),
                settlement: hold.transaction().map(|_| Settlement::Settled),
                payer: hold.claim().payer.clone(),
                receipt: None,
            },
            Money::Promise(promise) => Self {
                rail: promise.terms().rail.clone(),
                charged: Atoms(0),
                decimals: promise.terms().decimals,
                reference: promise.claim().reference.clone(),
                transaction: None,
                settlement: Some(Settlement::Pending),
                payer: promise.claim().payer.clone(),
                receipt: None,
            },
            Money::Lease(lease) => Self {
                rail: lease.channel().rail.clone(),
                charged: Atoms(0),
                decimals: lease.channel().decimals,
                reference: lease.channel().id.0.clone(),
                transaction: None,
                settlement: None,
                payer: Some(lease.channel().descriptor.payer.clone()),
                receipt: Some(lease.held().purchase.receipt.clone()),
            },
        }
    }
}
