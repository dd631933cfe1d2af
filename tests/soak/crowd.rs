//! Those who come and go with each round: users who churn, storms of connects, and the hostile.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::{client_async, WebSocketStream};
use tungstenite::Message;

use crate::hostile;

const CHURNERS: u64 = 40;
/// The users that churners are, so that some of them have mail when they come.
const NAMES: u64 = 300;
const STORM: usize = 400;
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Crowd {
    ports: Arc<[u16]>,
    chance: StdRng,
    there: JoinSet<()>,
}

impl Crowd {
    pub fn new(ports: Arc<[u16]>, seed: u64) -> Self {
        Self { ports, chance: StdRng::seed_from_u64(seed), there: JoinSet::new() }
    }

    pub fn come(&mut self) {
        for _ in 0..CHURNERS {
            let chance = StdRng::seed_from_u64(self.chance.random());
            self.there.spawn(churn(self.ports.clone(), chance));
        }
        hostile::come(&mut self.there, &self.ports, &mut self.chance);
    }

    /// Many connect at once, and are gone at once without a word.
    pub async fn storm(&mut self) {
        let mut storm = JoinSet::new();
        for at in 0..STORM {
            let port = self.ports[self.chance.random_range(0..self.ports.len())];
            storm.spawn(connect(port, format!("user=storm{at}")));
        }
        let _ = timeout(PATIENCE * 3, storm.join_all()).await;
    }

    /// All connections are cut.
    pub async fn leave(&mut self) {
        self.there.shutdown().await;
    }
}

/// `None`: the node is not there, or does not want it.
pub async fn connect(port: u16, query: String) -> Option<WebSocketStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let url = format!("ws://127.0.0.1:{port}/ws?{query}");
        Some(client_async(url, stream).await.ok()?.0)
    };
    timeout(PATIENCE, connecting).await.ok().flatten()
}

/// Comes as somebody, joins a channel, writes to people who may be there or away, reads for a while, and goes.
async fn churn(ports: Arc<[u16]>, mut chance: StdRng) {
    loop {
        let port = ports[chance.random_range(0..ports.len())];
        let name = chance.random_range(0..NAMES);
        if let Some(mut socket) = connect(port, format!("user=churn{name}")).await {
            let channel = format!("room{}", chance.random_range(0..NAMES));
            let mut requests =
                vec![json!({"type": "subscribe", "id": 1, "channel": channel, "presence": true})];
            for id in 2..6 {
                let to = match chance.random_range(0..4) {
                    0 => format!("channel.room{}", chance.random_range(0..NAMES)),
                    _ => format!("user.churn{}", chance.random_range(0..NAMES)),
                };
                requests.push(json!({"type": "publish", "id": id, "to": to, "payload": "x".repeat(200)}));
            }
            for request in requests {
                if socket.send(Message::text(request.to_string())).await.is_err() {
                    break;
                }
            }
            let stay = Duration::from_millis(chance.random_range(200..2_000));
            let _ = timeout(stay, async { while let Some(Ok(_)) = socket.next().await {} }).await;
            if chance.random_bool(0.5) {
                let _ = timeout(PATIENCE, socket.close(None)).await;
            }
        }
        sleep(Duration::from_millis(chance.random_range(0..500))).await;
    }
}
