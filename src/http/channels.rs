//! Channels over HTTP: who is in one, and putting a user's sessions into it and out of it.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde_json::json;
use warp::http::StatusCode;
use warp::reply::Response;

use super::api::{allowed, user_id, Asked};
use super::{response, AppState};
use crate::error::Error;
use crate::ids::{ChannelName, UserId};
use crate::router::ask::Found;

fn channel_name(segment: &str) -> Result<ChannelName, Error> {
    let decoded = percent_decode_str(segment).decode_utf8();
    let text = decoded.map_err(|_| Error::bad_request("channel name: not UTF-8"))?;
    ChannelName::new(&text).map_err(|error| Error::bad_request(error.to_string()))
}

/// `GET /v1/channels/{name}`
pub(super) async fn get(asked: Asked, segment: String) -> Response {
    let (state, channel) = match allowed(asked).and_then(|state| Ok((state, channel_name(&segment)?))) {
        Ok(asked) => asked,
        Err(error) => return response::error(&error),
    };
    let members = state.router.members_of(&channel).await;
    let body = json!({
        "channel": channel,
        "count": members.count,
        "users": members.users,
        "partial": members.partial,
    });
    response::json(StatusCode::OK, &body)
}

type Place = (Arc<AppState>, UserId, ChannelName);

fn place(asked: Asked, user: &str, channel: &str) -> Result<Place, Error> {
    let state = allowed(asked)?;
    Ok((state, user_id(user)?, channel_name(channel)?))
}

fn changed(verb: &str, user: &UserId, channel: &ChannelName, found: &Found) -> Response {
    let body = json!({
        "user": user,
        "channel": channel,
        (verb): found.count,
        "sessions": found.sessions,
        "partial": found.partial,
    });
    response::json(StatusCode::OK, &body)
}

/// `PUT /v1/users/{id}/channels/{name}`
pub(super) async fn put(asked: Asked, user: String, channel: String) -> Response {
    match place(asked, &user, &channel) {
        Ok((state, user, channel)) => {
            let found = state.router.subscribe_user(&user, &channel).await;
            changed("subscribed", &user, &channel, &found)
        }
        Err(error) => response::error(&error),
    }
}

/// `DELETE /v1/users/{id}/channels/{name}`
pub(super) async fn delete(asked: Asked, user: String, channel: String) -> Response {
    match place(asked, &user, &channel) {
        Ok((state, user, channel)) => {
            let found = state.router.unsubscribe_user(&user, &channel).await;
            changed("unsubscribed", &user, &channel, &found)
        }
        Err(error) => response::error(&error),
    }
}
