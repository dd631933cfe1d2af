//! What backends answer to requests: each answer settles the request that it names, and the first one counts.
//!
//! Anybody who may publish by queue name can write here, so that nothing is believed but the correlation id, which only
//! those have seen who got the request.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{dead_letter, read};
use crate::bus::{Bus, Delivery};
use crate::error::{Code, Error};
use crate::metrics::Metrics;
use crate::protocol::message::{Answer, Settlement};
use crate::router::Router;

/// What answers need.
pub struct RepliesDesk {
    pub router: Arc<Router>,
    pub bus: Arc<dyn Bus>,
    pub metrics: Arc<Metrics>,
    pub message_bytes_max: usize,
}

/// Works off the reply queue until it is closed.
pub async fn run(desk: RepliesDesk, mut inbox: mpsc::Receiver<Delivery>) {
    while let Some(delivery) = inbox.recv().await {
        desk.take(&delivery);
        // The queue dies with the link: nothing gains by keeping an answer in it.
        delivery.ack.ack();
    }
}

impl RepliesDesk {
    fn take(&self, delivery: &Delivery) {
        let correlation = delivery.properties.correlation_id.as_deref();
        let Some(settle) = correlation.and_then(|id| self.router.take_request(id)) else {
            // Late, a second one, or for nobody: that is for the backend to know, and no fault of this node.
            return self.metrics.answer_ignored();
        };
        match answer(delivery, self.message_bytes_max) {
            Ok(answer) => settle(Settlement::Answered(answer)),
            Err(reason) => {
                tracing::warn!(reason, "a backend's answer cannot be read");
                self.metrics.message_dead();
                self.bus.publish(dead_letter::publish(delivery, &reason), Box::new(|_| ()));
                let message =
                    format!("the backend has answered, but not in a way that can be shown: {reason}");
                settle(Settlement::Failed(Error::new(Code::BadAnswer, message)));
            }
        }
    }
}

fn answer(delivery: &Delivery, bytes_max: usize) -> Result<Answer, String> {
    let payload = read::payload_of(delivery, bytes_max)?;
    Answer::new(&payload).ok_or_else(|| "body: not JSON".to_owned())
}
