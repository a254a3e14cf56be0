//! `pontage channels`: asks the running gate, because only it may change a channel.

use super::complain;
use crate::conf::Conf;
use crate::edge::admin::OPERATOR;
use crate::secret::Secret;
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest wait for an answer: closing waits for requests and for the chain.
const ANSWER: Duration = Duration::from_secs(60);
/// Columns of the list.
const COLUMNS: [&str; 10] =
    ["id", "rail", "phase", "deposit", "accepted", "spent", "leased", "settled", "idle_seconds", "why"];

/// Prints the channels that are not over, one a line.
pub fn list(conf: &Path) -> ExitCode {
    ask(conf, "GET", "/channels", |body| {
        let mut out = COLUMNS.join("\t") + "\n";
        for line in body.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let cells: Vec<String> = COLUMNS.iter().map(|column| cell(&line[*column])).collect();
            out += &(cells.join("\t") + "\n");
        }
        out
    })
}

/// Settles, closes or releases one channel and prints how it stands then. Exit code 1 when that was refused or failed; that there was nothing
/// to settle is no failure, and `why` says so.
pub fn act(conf: &Path, id: &str, verb: &str) -> ExitCode {
    let digits = id.strip_prefix("0x").unwrap_or_default();
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return complain(&["a channel's id is 0x and 64 hex digits"]);
    }
    ask(conf, "POST", &format!("/channels/{id}/{verb}"), str::to_owned)
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn ask(conf: &Path, method: &str, path: &str, show: impl FnOnce(&str) -> String) -> ExitCode {
    let conf = match Conf::load(conf) {
        Ok(conf) => conf,
        Err(mistakes) => return complain(&mistakes),
    };
    let admin = reachable(conf.listen.admin);
    // It may not be readable here.
    let token = conf.admin_token.as_ref().filter(|_| needs_token(method, admin.ip()));
    let token = token.and_then(|said| said.value.read().ok());
    let (status, body) = match exchange(admin, method, path, token.as_ref()) {
        Ok(answer) => answer,
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            return complain(&[format!("no gate runs here: nothing listens on its admin address {admin}")]);
        }
        Err(e) => return complain(&[format!("the gate's admin address {admin} does not answer: {e}")]),
    };
    if status != 200 {
        return complain(&[format!("refused ({status}): {}", body.trim())]);
    }
    print!("{}", show(&body));
    ExitCode::SUCCESS
}

/// Where to reach a gate that listens there.
fn reachable(mut listens: SocketAddr) -> SocketAddr {
    if listens.ip().is_unspecified() {
        listens.set_ip(match listens.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listens
}

/// Whether a gate that has a token asks for it there: for a verb, and not on loopback. Elsewhere it is not sent.
fn needs_token(method: &str, admin: IpAddr) -> bool {
    method == "POST" && !admin.to_canonical().is_loopback()
}

/// One HTTP/1.1 exchange: status and body.
fn exchange(address: SocketAddr, method: &str, path: &str, token: Option<&Secret>) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let shown = token.and_then(Secret::expose_str);
    let shown = Zeroizing::new(shown.map_or(String::new(), |token| format!("authorization: Bearer {token}\r\n")));
    let head = Zeroizing::new(format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n{OPERATOR}: cli\r\n{}\r\n",
        *shown
    ));
    stream.write_all(head.as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let answer = reply.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    answer.ok_or_else(|| io::Error::other("that is not an answer"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_token_goes_only_with_a_verb_and_only_over_a_network() {
        for (method, listens, want) in [
            ("POST", "10.0.0.5:9402", true),
            ("GET", "10.0.0.5:9402", false),
            ("POST", "127.0.0.1:9402", false),
            ("POST", "0.0.0.0:9402", false),
            ("POST", "[::]:9402", false),
            ("POST", "[::ffff:127.0.0.1]:9402", false),
        ] {
            let admin = reachable(listens.parse().unwrap());
            assert_eq!(needs_token(method, admin.ip()), want, "{method} to {listens}");
        }
    }
}
