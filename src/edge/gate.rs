//! The phases of a request, each a few lines that call `flow/`.

use super::body::{self, Budget, Media};
use super::door::Guests;
use super::flood::Flood;
use super::pipe;
use super::reply::{self, Answer, Cors};
use super::visit::{Inside, Visit};
use crate::clock::UnixSeconds;
use crate::flow::price::Quoted;
use crate::flow::receipt::{Signet, public, still_running};
use crate::flow::{Stop, Toll, choose, control, directory, pay, session as by_token};
use crate::ids;
use crate::openai::multipart;
use crate::rail::x402::wire::Resource;
use crate::rail::{self, Found, Shown};
use crate::refusal::{Moved, Refusal};
use crate::rules::Plan;
use crate::rules::plan::{Access, Route, Surface};
use crate::surface::Whole;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, header};
use pingora::apps::HttpServerOptions;
use pingora::modules::http::HttpModules;
use pingora::prelude::{Error, ErrorType, HttpPeer, Result};
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, Session};
use pingora::server::configuration::ServerConf;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Idle seconds of a kept-alive connection.
pub const KEEP_ALIVE_SECONDS: u64 = 60;
/// Where receipts are.
const RECEIPTS: &str = "/receipts/";

/// The proxy application.
pub struct Gate {
    /// The road of a request.
    pub toll: Arc<Toll>,
    /// Signs receipts.
    pub signet: Arc<Signet>,
    /// Connections to backends.
    pub lines: Arc<super::forward::Lines>,
    /// Who is connected.
    pub guests: Arc<Guests>,
    /// Bytes of request bodies in flight.
    pub budget: Budget,
    /// Longest wait for a body.
    pub body_wait: Duration,
    /// Traffic nobody pays for.
    pub flood: Flood,
    /// Browsers.
    pub cors: Cors,
    /// Set when the gate is stopping: nothing new is begun.
    pub stopping: Arc<AtomicBool>,
}

/// What a request comes to: an answer to write, or a reply that is out already.
enum Outcome {
    Answer(Answer),
    Sent(&'static str),
    Gone,
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Answer(Answer::refused(&refusal.into()))
    }
}

impl Gate {
    /// Pingora's proxy around the gate, with HTTP/2 bounded. `plain_h2`: HTTP/2 also without TLS, for callers that know they may.
    pub fn into_proxy(self, plain_h2: bool, h2_streams: u32) -> HttpProxy<Self> {
        let mut proxy = HttpProxy::new(self, Arc::new(ServerConf::default()));
        proxy.handle_init_modules();
        let mut options = HttpServerOptions::default();
        options.h2c = plain_h2;
        options.keepalive_request_limit = Some(10_000);
        options.h2_idle_timeout = Some(Duration::from_secs(KEEP_ALIVE_SECONDS));
        proxy.server_options = Some(options);
        let mut h2 = H2Options::default();
        h2.max_concurrent_streams(h2_streams)
            .max_header_list_size(64 * 1024)
            .max_pending_accept_reset_streams(20)
            .max_concurrent_reset_streams(10)
            .max_local_error_reset_streams(Some(32));
        proxy.h2_options = Some(h2);
        proxy
    }

    async fn serve(&self, session: &mut Session, visit: &mut Visit) -> Outcome {
        let stopping = self.stopping.load(Ordering::Relaxed);
        if stopping {
            session.set_keepalive(None);
        }
        if let Err(refusal) = sane(session) {
            session.set_keepalive(None);
            return refusal.into();
        }
        if session.req_header().headers.contains_key(header::UPGRADE) {
            session.set_keepalive(None);
        }
        let path = session.req_header().uri.path().to_owned();
        let method = session.req_header().method.clone();
        let plan = Arc::clone(&visit.plan);
        // A browser that asks whether it may is not asking for anything yet; what it may not find it is told when it comes.
        if method == Method::OPTIONS
            && let Some(answer) = self.cors.preflight(&session.req_header().headers)
        {
            if plan.route(&path).is_some() {
                visit.route = path;
            }
            return Outcome::Answer(answer);
        }
        if stopping && !carries_on(&session.req_header().headers) {
            return Refusal::Stopping.into();
        }
        if let "/openapi.json" | "/llms.txt" | "/agents.md" = path.as_str() {
            let answer = self.unpaid_read(visit, &method, || self.document(&path, &plan));
            visit.route = path;
            return answer;
        }
        if let Some(id) = path.strip_prefix(RECEIPTS) {
            return match method {
                Method::GET | Method::HEAD => self.receipt(visit, id).await,
                _ => Refusal::MethodNotAllowed { allow: "GET, HEAD" }.into(),
            };
        }
        let Some(route) = plan.route(&path) else { return self.listed(visit, &plan, &path, &method) };
        visit.route = path;
        match (route.surface, method) {
            (Surface::Models, method) => self.unpaid_read(visit, &method, || {
                let created = self.toll.rules.standing().loaded_at.0;
                Answer::document("application/json", directory::models(&plan, route, created))
            }),
            (_, Method::POST | Method::HEAD | Method::GET) => self.sell(session, visit, route).await,
            (surface, _) => Refusal::MethodNotAllowed { allow: surface.methods() }.into(),
        }
    }

    /// A receipt by its id, which only whoever was given it knows: what was used, what it cost, and whether that is settled.
    async fn receipt(&self, visit: &mut Visit, id: &str) -> Outcome {
        RECEIPTS.trim_end_matches('/').clone_into(&mut visit.route);
        if let Err(refusal) = self.flood.admit(visit.client, false) {
            return refusal.into();
        }
        let well_formed = id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if !well_formed {
            return Refusal::UnknownPath.into();
        }
        let runs = self.toll.running.has(id);
        match self.toll.store.receipt(id).await {
            Ok(Some(receipt)) => Outcome::Answer(Answer::private(public(&receipt).to_string())),
            Ok(None) if runs => Outcome::Answer(Answer::private(still_running(id).to_string())),
            Ok(None) => Refusal::UnknownPath.into(),
            Err(e) => {
                tracing::error!(error = %e, "a receipt could not be read");
                Refusal::Store { retry_after_seconds: 10 }.into()
            }
        }
    }

    /// What anybody may read, as often as he may ask without paying: it is made anew each time.
    fn unpaid_read(&self, visit: &Visit, method: &Method, read: impl FnOnce() -> Answer) -> Outcome {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Refusal::MethodNotAllowed { allow: "GET, HEAD" }.into();
        }
        match self.flood.admit(visit.client, false) {
            Ok(()) => Outcome::Answer(read()),
            Err(refusal) => refusal.into(),
        }
    }

    fn document(&self, path: &str, plan: &Plan) -> Answer {
        match path {
            "/openapi.json" => Answer::document("application/json", directory::openapi(&self.toll, plan)),
            _ => Answer::document("text/plain; charset=utf-8", directory::llms(&self.toll, plan)),
        }
    }

    /// One entry of a list of models, by its path below the list; no other path is made up of parts.
    fn listed(&self, visit: &mut Visit, plan: &Plan, path: &str, method: &Method) -> Outcome {
        let Some((list, id)) = plan.entry_of(path) else { return Refusal::UnknownPath.into() };
        visit.route = list.path.to_string();
        self.unpaid_read(visit, method, || {
            let asked = percent_decoded(id);
            let created = self.toll.rules.standing().loaded_at.0;
            match directory::model(plan, list, &asked, created) {
                Some(entry) => Answer::document("application/json", entry),
                None => Answer::refused(&Refusal::UnknownModel { asked }.into()),
            }
        })
    }

    /// One exchange on a paid path. Who showed a credential may have paid already (a push payment is on chain before we see it), so
    /// no refusal lets a client repeat the request by itself; a 402 says so by being one. What a gate that stops sends away it has not taken.
    async fn sell(&self, session: &mut Session, visit: &mut Visit, route: &Arc<Route>) -> Outcome {
        let found = rail::found(&session.req_header().headers);
        match self.exchange(session, visit, route, &found).await {
            Outcome::Answer(answer)
                if matches!(found, Found::One(_))
                    && answer.status > 402
                    && answer.outcome != Refusal::Stopping.code() =>
            {
                Outcome::Answer(answer.not_to_be_repeated())
            }
            outcome => outcome,
        }
    }

    /// What is over before the answer begins has its state in boxes of its own: the state of this function lives as long as the
    /// answer, and a stream may stand still for long.
    async fn exchange(&self, session: &mut Session, visit: &mut Visit, route: &Arc<Route>, found: &Found) -> Outcome {
        if let Err(refusal) = self.flood.admit(visit.client, matches!(found, Found::One(_) | Found::Many(_))) {
            session.set_keepalive(None);
            return refusal.into();
        }
        let stopping = self.stopping.load(Ordering::Relaxed);
        let method = session.req_header().method.clone();
        let no_body = method != Method::POST || body::is_absent(session);
        if let Found::One(shown) = found
            && control::is_management(shown, no_body)
        {
            // What comes with it is not looked at, and has to come before anything can be told from the connection.
            let limit = route.tier.limits.max_body_bytes;
            return match Box::pin(body::skip(session, limit, self.body_wait, self.budget.permit(visit.client))).await {
                Ok(()) => Box::pin(self.manage(session, visit, route, shown)).await,
                Err(unread) => unserved(session, unread),
            };
        }
        // While it runs its payer may have to connect again, with a voucher: a stop keeps the door open for him.
        let over_channel = !stopping && matches!(found, Found::One(shown) if shown.action().is_some());
        let _busy = over_channel.then(|| pipe::Busy::with(self, "sessions"));
        if method == Method::GET {
            // Who opens the address in a browser is shown the page of a 402, and not an error of programs.
            let is_asked = route.access == Access::Paid && matches!(found, Found::Nothing);
            if is_asked && is_browser(&session.req_header().headers) {
                return Box::pin(self.unpaid(session, visit, route, Refusal::PaymentRequired.into())).await;
            }
            return Refusal::MethodNotAllowed { allow: route.surface.methods() }.into();
        }
        let limit = route.tier.limits.max_body_bytes;
        let media = if route.surface.takes_form() { Media::Form } else { Media::Json };
        let permit = self.budget.permit(visit.client);
        let read = Box::pin(body::read(session, media, limit, self.body_wait, permit)).await;
        let body = match read {
            Ok(body) => body,
            Err(unread) => return unserved(session, unread),
        };
        // Only the end of it said that there is nothing: it is managed as if its head had.
        if let Found::One(shown) = found
            && control::is_management(shown, body.is_empty())
        {
            return Box::pin(self.manage(session, visit, route, shown)).await;
        }
        if stopping {
            return Refusal::Stopping.into();
        }
        // A reply to HEAD has no body: whatever is asked with it asks for nothing, so nothing is forwarded or spent.
        let body = if method == Method::HEAD { Bytes::new() } else { body };
        let digest: [u8; 32] = match media {
            Media::Json => Sha256::digest(&body).into(),
            Media::Form => multipart::digest(&body),
        };
        let plan = Arc::clone(&visit.plan);
        if method == Method::HEAD
            && let Found::One(shown) = found
        {
            match control::prove(&self.toll, &plan, route, shown, digest).await {
                Ok(Some(headers)) => return Outcome::Answer(Answer::managed(headers)),
                Ok(None) => {}
                Err(stop) => return Box::pin(self.unpaid(session, visit, route, stop)).await,
            }
        }
        let quoted = match Box::pin(choose::quote(&self.toll, &plan, route.path.as_str(), body.clone(), found)).await {
            Ok(quoted) => Arc::new(quoted),
            Err(refusal) => return refusal.into(),
        };
        let request = visit.request.clone();
        let asked = pay::Visit { plan: &plan, found, digest, body: &body, request: &request };
        // The chain may take seconds. A client that leaves meanwhile drops this wait; the payment is followed up by its own task.
        let paid = tokio::select! {
            biased;
            paid = Box::pin(pay::pay(&self.toll, &asked, &quoted)) => paid,
            () = super::forward::gone(session) => return Outcome::Gone,
        };
        match paid {
            Ok(paid) => {
                self.flood.forgive(visit.client);
                // The text is in what was paid, and goes no further than the backend.
                let still_offered = quoted.without_body();
                drop((quoted, body));
                match pipe::run(self, session, visit, Box::new(paid)).await {
                    Ok(pipe::Sent::Answer(answer)) => Outcome::Answer(answer),
                    Ok(pipe::Sent::Out(outcome)) => Outcome::Sent(outcome),
                    Ok(pipe::Sent::Gone) => Outcome::Gone,
                    Err(stop) => Box::pin(self.stopped(session, visit, stop, &still_offered, digest)).await,
                }
            }
            Err(stop) => {
                if let Found::One(shown) = found {
                    visit.channel = by_token::opened_by(&self.toll, shown).await;
                }
                Box::pin(self.stopped(session, visit, stop, &quoted, digest)).await
            }
        }
    }

    /// What concerns a channel and no content. A client that leaves is not waited for; what was begun for it goes on.
    async fn manage(&self, session: &mut Session, visit: &mut Visit, route: &Arc<Route>, shown: &Shown) -> Outcome {
        let managed = tokio::select! {
            biased;
            managed = control::manage(&self.toll, route, shown) => managed,
            () = super::forward::gone(session) => return Outcome::Gone,
        };
        match managed {
            Ok(headers) => {
                // A channel takes so many vouchers a second. Whatever else is asked of it can be asked again and again, and changes nothing.
                if shown.action() == Some("voucher") {
                    self.flood.forgive(visit.client);
                }
                Outcome::Answer(Answer::managed(headers))
            }
            Err(stop) => {
                visit.channel = by_token::opened_by(&self.toll, shown).await;
                self.unpaid(session, visit, route, stop).await
            }
        }
    }

    /// A refusal to a request that asks for nothing: its offers are those of the route's default.
    async fn unpaid(&self, session: &mut Session, visit: &Visit, route: &Arc<Route>, stop: Stop) -> Outcome {
        if !stop.refusal.invites_payment() {
            return Outcome::Answer(Answer::refused(&stop).with(visit.channel.clone()));
        }
        match choose::quote(&self.toll, &visit.plan, route.path.as_str(), Bytes::new(), &Found::Nothing).await {
            Ok(quoted) => self.stopped(session, visit, stop, &quoted, Sha256::digest(b"").into()).await,
            Err(refusal) => refusal.into(),
        }
    }

    /// A refusal; with every offer of the route when it invites a payment, and 503 when there is none to make.
    async fn stopped(
        &self,
        session: &mut Session,
        visit: &Visit,
        stop: Stop,
        quoted: &Quoted,
        digest: [u8; 32],
    ) -> Outcome {
        if !stop.refusal.invites_payment() {
            return Outcome::Answer(Answer::refused(&stop).with(visit.channel.clone()));
        }
        let (method, headers) = (&session.req_header().method, &session.req_header().headers);
        let route = &quoted.allowed.route;
        if method == Method::HEAD
            && let Some(offer) =
                control::proof_offer(&self.toll, &visit.plan, route, headers, digest, UnixSeconds::now())
        {
            return Outcome::Answer(Answer::challenge(&stop, vec![offer], &Resource::default()));
        }
        let found = rail::found(headers);
        let shown = match &found {
            Found::One(shown) => shown.channel(),
            _ => None,
        };
        let known = match route.by_usage {
            true => by_token::hinted(&self.toll, shown.as_ref(), headers).await,
            false => None,
        };
        Outcome::Answer(match pay::offers(&self.toll, quoted, digest, headers, known.as_deref()).await {
            Ok(offers) => {
                let (url, description) = (format!("{}{}", self.toll.public_url, route.path), pay::description(quoted));
                let mime_type = match route.surface.whole() {
                    Whole::Json | Whole::Text => "application/json",
                    Whole::Sound => "audio/*",
                };
                let sold = Resource { url: &url, description: &description, mime_type };
                let answer = Answer::challenge(&stop, offers, &sold).with(rail::failure(&found, &stop.refusal));
                if is_browser(headers) { answer.as_page() } else { answer }
            }
            Err(refusal) => Answer::refused(&Stop { refusal, ..stop }).with(visit.channel.clone()),
        })
    }
}

/// The answer to a request whose body did not come: what is left of it on the connection cannot be told from the next request.
fn unserved(session: &mut Session, unread: body::Unread) -> Outcome {
    match unread {
        body::Unread::ClientGone => Outcome::Gone,
        body::Unread::Refused(refusal) => {
            session.set_keepalive(None);
            refusal.into()
        }
    }
}

/// Whether it may be for what runs already, or to end a channel: a gate that stops takes that, because streams over channels stand still
/// without their vouchers. An opening only begins something.
fn carries_on(headers: &HeaderMap) -> bool {
    matches!(rail::found(headers), Found::One(shown) if matches!(shown.action(), Some("voucher" | "topUp" | "close")))
}

/// Whether a person looks at this: wallets and SDKs that call themselves Mozilla ask for JSON.
fn is_browser(headers: &HeaderMap) -> bool {
    let says = |name, word| headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains(word));
    says(header::ACCEPT, "text/html") && says(header::USER_AGENT, "Mozilla")
}

/// What must not be guessed about: upgrades, tunnels, paths outside their normal form.
fn sane(session: &Session) -> std::result::Result<(), Refusal> {
    if session.req_header().method == Method::CONNECT {
        return Err(Refusal::BadHead { why: "tunnels are not served here" });
    }
    body::unambiguous(session)
}

/// A name out of a path: clients write its `/` plainly or as `%2F`. What is not an escape stays.
fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(part.get(2..).unwrap_or_default().as_bytes());
            }
            None => {
                bytes.push(b'%');
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn peer_of(session: &Session) -> Option<SocketAddr> {
    session.client_addr().and_then(|a| a.as_inet()).copied()
}

#[async_trait]
impl ProxyHttp for Gate {
    type CTX = Visit;

    fn new_ctx(&self) -> Visit {
        Visit {
            request: ids::fresh("req"),
            plan: self.toll.rules.plan(),
            began: Instant::now(),
            client: None,
            inside: Inside::new(&self.toll.metrics),
            route: "other".to_owned(),
            status: 0,
            outcome: "client_gone",
            channel: None,
            sold: None,
        }
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, visit: &mut Visit) -> Result<()> {
        if let Some(peer) = peer_of(session) {
            self.guests.head_seen(peer);
            visit.client = Some(peer.ip());
        }
        session.set_keepalive(Some(KEEP_ALIVE_SECONDS));
        session.set_write_timeout(Some(reply::WRITE_WAIT));
        session.set_total_drain_timeout(Some(Duration::from_secs(5)));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, visit: &mut Visit) -> Result<bool> {
        match self.serve(session, visit).await {
            Outcome::Answer(answer) => {
                visit.status = answer.status;
                visit.outcome = answer.outcome;
                let extra = self.common_headers(session, visit);
                reply::send(session, answer, extra).await.map_err(|e| e.into_down())?;
            }
            Outcome::Sent("client_gone") | Outcome::Gone => {
                visit.outcome = "client_gone";
                // `Ok` would let Pingora finish the body on a connection nobody reads, without a timeout.
                return Err(Error::explain(ErrorType::ConnectionClosed, "the client left").into_down());
            }
            Outcome::Sent(outcome) => visit.outcome = outcome,
        }
        Ok(true)
    }

    /// Never reached: every request is answered in `request_filter`.
    async fn upstream_peer(&self, _session: &mut Session, _visit: &mut Visit) -> Result<Box<HttpPeer>> {
        Err(Error::explain(ErrorType::InternalError, "no native path"))
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, visit: &mut Visit) -> FailToProxy {
        // A reply that has begun cannot be mended; one that has not gets our own words, never Pingora's.
        if session.response_written().is_none() && !matches!(e.esource(), pingora::ErrorSource::Downstream) {
            let stop = Stop { refusal: Refusal::Internal { place: "edge" }, moved: Moved::No, claimed: false };
            visit.outcome = stop.refusal.code();
            visit.status = 500;
            let _ = reply::send(session, Answer::refused(&stop), Vec::new()).await;
        }
        FailToProxy { error_code: visit.status, can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _session: &Session, _visit: &Visit, _error: &Error) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, visit: &mut Visit) {
        let m = &self.toll.metrics;
        m.requests.with_label_values(&[visit.route.as_str(), visit.outcome]).inc();
        let sold = visit.sold.as_ref();
        tracing::info!(
            target: "access",
            request = %visit.request,
            client = visit.client.map(tracing::field::display),
            method = %method_label(&session.req_header().method),
            route = %visit.route,
            status = visit.status,
            outcome = visit.outcome,
            ms = u64::try_from(visit.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            generation = %visit.plan.generation,
            model = sold.map(|s| s.model.as_str()),
            rail = sold.map(|s| s.rail.as_str()),
            charged_usd = sold.map(|s| s.charged_usd.to_string()),
            receipt = sold.map(|s| s.receipt.as_str()),
            broken = e.is_some(),
        );
        if let Some(peer) = peer_of(session)
            && !session.as_downstream().is_http2()
        {
            self.guests.answered(peer);
        }
    }
}

impl Gate {
    /// Headers of every answer.
    pub(super) fn common_headers(&self, session: &Session, visit: &Visit) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = self.cors.headers(session.req_header().headers.get(header::ORIGIN));
        if let Ok(id) = HeaderValue::from_str(&visit.request) {
            headers.push((HeaderName::from_static("x-request-id"), id));
        }
        headers
    }
}

/// A closed set, because methods are the client's text.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
