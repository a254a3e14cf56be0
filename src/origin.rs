//! Where a server is: the part of a web address that an operator may configure. Nothing secret and nothing per-request
//! belongs into it, so user info, queries and fragments are refused.

use std::net::IpAddr;

/// Scheme, host, port, and path prefix of an `http` or `https` address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// `https`.
    pub tls: bool,
    /// Host name in lower case, or an address; IPv6 without brackets.
    pub host: String,
    /// Port, the scheme's own when none is written.
    pub port: u16,
    /// Path without a trailing slash; usually empty.
    pub prefix: String,
}

impl Origin {
    /// Reads `http://host:port/prefix`. The error goes behind the quoted text: `"…" has user info`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err("has characters that are not plain ASCII (write an international host in its xn-- form)");
        }
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err("is not an http:// or https:// address"),
        };
        if rest.contains(['?', '#']) {
            return Err("has a query or a fragment");
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') {
            return Err("has user info; give a key as api_key");
        }
        let (host, port) = split_port(authority)?;
        let port = match port {
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|p| *p != 0).ok_or("has an impossible port")?
            }
            Some(_) => return Err("has an impossible port"),
        };
        let prefix = path.trim_end_matches('/');
        if !prefix.is_empty() {
            normal_path(prefix)?;
        }
        Ok(Self { tls, host: host.to_ascii_lowercase(), port, prefix: prefix.to_owned() })
    }

    /// The host is an address that only its own machine or link can mean: cloud metadata services live there, and a backend
    /// never does.
    pub fn is_link_local(&self) -> bool {
        self.host.parse().is_ok_and(is_link_local)
    }
}

/// As [`Origin::is_link_local`], of an address that was found behind a name.
pub fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast(),
    }
}

/// A host without the brackets URLs put around IPv6.
pub fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), &'static str> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("has no host")?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| "has an impossible IPv6 address")?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("has an impossible port"),
        }
    } else {
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        let label = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if host.is_empty() || !host.bytes().all(label) || host.starts_with('.') || host.contains("..") {
            return Err("has no plain host name");
        }
        (host, port)
    };
    Ok((host, port))
}

/// Whether `path` is in the one form a route may have: absolute, no empty, `.` or `..` segment, no trailing slash, only
/// characters that nobody decodes, splits or folds. The error goes behind the quoted path.
pub fn normal_path(path: &str) -> Result<&str, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.~!$&'()*+,=:@".contains(&b);
    let Some(rest) = path.strip_prefix('/') else { return Err("does not begin with /") };
    if rest.ends_with('/') || rest.is_empty() {
        return Err("ends in /");
    }
    if path.contains("//") {
        return Err("has an empty segment");
    }
    if rest.split('/').any(|segment| segment == "." || segment == "..") {
        return Err("has a . or .. segment");
    }
    if !path.bytes().all(plain) {
        return Err("has characters outside A-Z a-z 0-9 and -_.~!$&'()*+,=:@ (no %, ;, ?, #)");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn an_address_is_read_into_scheme_host_port_and_prefix() {
        for (text, tls, host, port, prefix) in [
            ("http://127.0.0.1:8000", false, "127.0.0.1", 8000, ""),
            ("https://API.example", true, "api.example", 443, ""),
            ("http://backend/", false, "backend", 80, ""),
            ("https://host/openai/", true, "host", 443, "/openai"),
            ("http://[::1]:9", false, "::1", 9, ""),
        ] {
            let want = Origin { tls, host: host.into(), port, prefix: prefix.into() };
            assert_eq!(Origin::parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn an_address_that_hides_something_is_refused() {
        for (text, why) in [
            ("ftp://host", "scheme"),
            ("file:///etc/passwd", "no web server"),
            ("host:8000", "no scheme"),
            ("http://user:key@host", "a secret inline"),
            ("http://host?key=1", "a secret in a query"),
            ("http://host#x", "fragment"),
            ("http://", "no host"),
            ("http://:80", "no host before the port"),
            ("http://host:0", "port 0"),
            ("http://host:65536", "port too large"),
            ("http://host:+80", "a sign is not a digit"),
            ("http://ho st", "space"),
            ("http://münchen.example", "not ASCII"),
            ("http://ho|st", "would split a signed realm"),
            ("http://[::1", "open bracket"),
            ("http://host/a/../b", "dot segments"),
            ("http://host/%2e", "percent-encoding"),
        ] {
            assert!(Origin::parse(text).is_err(), "{text}: {why}");
        }
    }

    #[test]
    fn metadata_addresses_are_recognised() {
        for (host, want) in [
            ("169.254.169.254", true),
            ("[fe80::1]", true),
            ("0.0.0.0", true),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(Origin::parse(&format!("http://{host}:80")).unwrap().is_link_local(), want, "{host}");
        }
    }

    #[test]
    fn a_path_has_exactly_one_spelling() {
        assert_eq!(normal_path("/v1/chat/completions"), Ok("/v1/chat/completions"));
        for (path, why) in [
            ("v1", "relative"),
            ("/", "the root"),
            ("/v1/", "trailing slash"),
            ("//v1", "empty segment"),
            ("/a//b", "empty segment"),
            ("/a/./b", "dot"),
            ("/a/..", "dot dot"),
            ("/a%2fb", "encoded"),
            ("/a;b", "matrix parameter"),
            ("/a?b", "query"),
            ("/a#b", "fragment"),
            ("/a b", "space"),
            ("/é", "not ASCII"),
            ("/a\\b", "backslash"),
            ("", "nothing"),
        ] {
            assert!(normal_path(path).is_err(), "{path}: {why}");
        }
    }
}
