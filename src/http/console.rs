//! The console for operators, and the client library: pages and scripts that the binary carries.
//!
//! The console's own files tell nothing and can do nothing; what it shows and does goes through `/v1`, with the
//! credentials of whoever looks.

use warp::http::header::HeaderMap;
use warp::http::Method;
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::assets::Asset;

/// The page loads its own scripts, styles and fonts alone, opens sockets to nodes, and cannot be put into a frame.
const POLICY: &str =
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; \
    connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";
const HEADERS: &[(&str, &str)] = &[
    ("content-security-policy", POLICY),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Public and the same for everybody, so a page of any origin may load it.
const CLIENT_LIBRARY: Asset = Asset {
    media_type: SCRIPT,
    body: include_bytes!("../../sdk/js/warren-client.js"),
    headers: &[("access-control-allow-origin", "*")],
};

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PAGE: &str = "text/html; charset=utf-8";
const FONT: &str = "font/woff2";
const ICON: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal $kind:ident $file:literal),* $(,)?) => {
        &[$(($path, Asset {
            media_type: $kind,
            body: include_bytes!(concat!("../../console/", $file)),
            headers: HEADERS,
        })),*]
    };
}

const CONSOLE: &[(&str, Asset)] = files![
    "/" PAGE "index.html",
    "/console/api.js" SCRIPT "api.js",
    "/console/clients.js" SCRIPT "clients.js",
    "/console/console.css" STYLE "console.css",
    "/console/dom.js" SCRIPT "dom.js",
    "/console/feed.js" SCRIPT "feed.js",
    "/console/icon.svg" ICON "icon.svg",
    "/console/main.js" SCRIPT "main.js",
    "/console/map.js" SCRIPT "map.js",
    "/console/model.js" SCRIPT "model.js",
    "/console/panels.js" SCRIPT "panels.js",
    "/console/plex-mono.woff2" FONT "fonts/plex-mono.woff2",
    "/console/plex-sans.woff2" FONT "fonts/plex-sans.woff2",
];

/// `GET /warren-client.js`: for browsers, from the node that they talk to.
pub(super) fn client_library() -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("warren-client.js")
        .and(read())
        .map(|method, headers| CLIENT_LIBRARY.answer(&method, &headers))
}

/// `GET /` and what the page there needs.
pub(super) fn pages() -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path::full().and(read()).and_then(|path: FullPath, method: Method, headers: HeaderMap| async move {
        let found = CONSOLE.iter().find(|(at, _)| *at == path.as_str());
        found.map(|(_, asset)| asset.answer(&method, &headers)).ok_or_else(warp::reject::not_found)
    })
}

fn read() -> impl Filter<Extract = (Method, HeaderMap), Error = Rejection> + Clone {
    warp::get().or(warp::head()).unify().and(warp::method()).and(warp::header::headers_cloned())
}
