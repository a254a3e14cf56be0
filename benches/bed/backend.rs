//! Backends that cost next to nothing, as processes of their own: one completion, or a stream.

use super::{Running, answer, read_request};
use serde_json::json;
use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a backend answers.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// With one completion of about 900 bytes.
    Json,
    /// With `events` of one token each, one write each, `gap` between them, and usage at the end; `running`: on every event too.
    Stream { events: u32, gap: Duration, running: bool },
}

/// Starts this program once more as a backend; its address.
pub fn start(kind: Kind) -> (Running, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    match kind {
        Kind::Json => command.arg("role=json"),
        Kind::Stream { events, gap, running } => {
            command.args(["role=stream", &events.to_string(), &gap.as_micros().to_string(), &running.to_string()])
        }
    };
    let mut backend = Running::start(command.stdout(Stdio::piped()));
    let address = backend.first_line();
    (backend, address)
}

/// Takes the role that the arguments of this program name, if they name one.
pub fn play(arguments: &[&str]) {
    match arguments {
        ["role=json"] => completions(),
        ["role=stream", events, gap, running] => {
            let gap = Duration::from_micros(gap.parse().unwrap());
            streams(events.parse().unwrap(), gap, running.parse().unwrap())
        }
        ["role=bare", listen, upstream] => super::bare_pingora::serve(listen, upstream.parse().unwrap()),
        _ => {}
    }
}

fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    listener
}

fn completions() -> ! {
    answer(&listen(), |_| {
        json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "bridge ".repeat(90) } }],
            "usage": { "prompt_tokens": 200, "completion_tokens": 90, "total_tokens": 290 },
        })
        .to_string()
    });
    std::process::exit(0)
}

fn streams(events: u32, gap: Duration, running: bool) -> ! {
    for tcp in listen().incoming().flatten() {
        // A thousand of them at once.
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        thread.spawn(move || serve(tcp, events, gap, running)).unwrap();
    }
    std::process::exit(0)
}

fn serve(tcp: TcpStream, events: u32, gap: Duration, running: bool) -> Option<()> {
    tcp.set_nodelay(true).ok()?;
    let mut out = tcp.try_clone().ok()?;
    let mut read = BufReader::new(tcp);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        read_request(&mut read, &mut line, &mut body)?;
        out.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .ok()?;
        let began = Instant::now();
        for at in 1..=events {
            out.write_all(&event(at, running)).ok()?;
            std::thread::sleep((gap * at).saturating_sub(began.elapsed()));
        }
        let usage = format!(r#"{{"prompt_tokens":9,"completion_tokens":{events},"total_tokens":{}}}"#, events + 9);
        out.write_all(&chunk(&format!("data: {{\"id\":\"c\",\"choices\":[],\"usage\":{usage}}}\n\n"))).ok()?;
        out.write_all(&chunk("data: [DONE]\n\n")).ok()?;
        out.write_all(b"0\r\n\r\n").ok()?;
    }
}

fn event(at: u32, running: bool) -> Vec<u8> {
    let usage = match running {
        true => format!(r#"{{"prompt_tokens":9,"completion_tokens":{at},"total_tokens":{}}}"#, at + 9),
        false => "null".to_owned(),
    };
    chunk(&format!(
        "data: {{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1795221719,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" bridge\"}},\"logprobs\":null,\"finish_reason\":null}}],\"usage\":{usage}}}\n\n"
    ))
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
