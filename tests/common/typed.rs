//! What a backend says on `/v1/responses` and `/v1/messages`, with figures that can be counted nowhere.

use serde_json::{Value, json};

/// The model of the default rules.
const MODEL: &str = "openai/gpt-oss-120b";
/// The paid paths.
pub const RESPONSES: &str = "/v1/responses";
pub const MESSAGES: &str = "/v1/messages";
pub const BOTH: [&str; 2] = [RESPONSES, MESSAGES];
/// What every reply here says.
pub const TEXT: &str = "wördy answer";
/// Input tokens, of which so many from a cache, and output tokens; all of it said by the backend alone.
pub const USED: (u64, u64, u64) = (50, 20, 7);

/// One event, named as its data says.
pub fn event(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap())
}

/// A small request.
pub fn ask(path: &str, stream: bool) -> Value {
    let mut body = if path == RESPONSES {
        json!({"model": MODEL, "input": "one two three", "max_output_tokens": 50})
    } else {
        json!({"model": MODEL, "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 50})
    };
    if stream {
        body["stream"] = json!(true);
    }
    body
}

/// The reply of a backend that does not stream.
pub fn whole(path: &str) -> Value {
    whole_of(path, TEXT, USED.2)
}

/// The same with this text and so many output tokens.
pub fn whole_of(path: &str, text: &str, output: u64) -> Value {
    let (input, cached, _) = USED;
    if path == RESPONSES {
        return json!({"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "served", "error": null,
            "incomplete_details": null, "instructions": null, "metadata": {}, "parallel_tool_calls": true, "temperature": 1.0,
            "tool_choice": "auto", "tools": [], "top_p": 1.0,
            "output": [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": []}]}],
            "usage": {"input_tokens": input, "output_tokens": output, "total_tokens": input + output,
                "input_tokens_details": {"cached_tokens": cached}, "output_tokens_details": {"reasoning_tokens": 0}}});
    }
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "served", "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": input - cached, "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0, "output_tokens": output}})
}

/// A stream: what leaves at once, and what must wait for the receipt.
pub fn streamed(path: &str) -> (String, String) {
    let (first, second) = TEXT.split_at(7);
    streamed_of(path, &[first, second], USED.2)
}

/// The same with these pieces of text and so many output tokens.
pub fn streamed_of(path: &str, pieces: &[&str], output: u64) -> (String, String) {
    let said = pieces.concat();
    let mut reply = whole_of(path, &said, output);
    if path == RESPONSES {
        let end = event(&json!({"type": "response.completed", "sequence_number": 8, "response": reply}));
        reply["status"] = json!("in_progress");
        reply["usage"] = Value::Null;
        let item = std::mem::replace(&mut reply["output"], json!([]))[0].clone();
        let mut opened = item.clone();
        opened["content"] = json!([]);
        let part = item["content"][0].clone();
        let at = |kind: &str, n: u64, more: Value| {
            let mut data =
                json!({"type": kind, "sequence_number": n, "item_id": "msg_1", "output_index": 0, "content_index": 0});
            data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            event(&data)
        };
        let text = |n, text: &str| at("response.output_text.delta", n, json!({"delta": text, "logprobs": []}));
        let leaves = event(&json!({"type": "response.created", "sequence_number": 0, "response": reply}))
            + &at("response.output_item.added", 1, json!({"item": opened}))
            + &at(
                "response.content_part.added",
                2,
                json!({"part": {"type": "output_text", "text": "", "annotations": []}}),
            )
            + &pieces.iter().map(|piece| text(3, piece)).collect::<String>()
            + &at("response.output_text.done", 5, json!({"text": said, "logprobs": []}))
            + &at("response.content_part.done", 6, json!({"part": part}))
            + &at("response.output_item.done", 7, json!({"item": item}));
        return (leaves, end);
    }
    let mut usage = std::mem::take(&mut reply["usage"]);
    let said = json!({"output_tokens": usage["output_tokens"]});
    usage["output_tokens"] = json!(1);
    reply["usage"] = usage;
    reply["content"] = json!([]);
    reply["stop_reason"] = Value::Null;
    let delta = |text: &str| {
        event(&json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}))
    };
    let leaves = event(&json!({"type": "message_start", "message": reply}))
        + &event(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}))
        + &event(&json!({"type": "ping"}))
        + &pieces.iter().map(|piece| delta(piece)).collect::<String>()
        + &event(&json!({"type": "content_block_stop", "index": 0}));
    let end = event(
        &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": said}),
    ) + &event(&json!({"type": "message_stop"}));
    (leaves, end)
}
