//! Gateways that are broken on purpose, and the row of the fault table that must show it.
//!
//! Each is a feature of Cargo.toml, one line or block under `#[cfg(feature = "…")]`, at the one place of the
//! pipeline that its comment here names; `./test faults --sabotage` builds each of them and runs its row.

pub struct Sabotage {
    pub feature: &'static str,
    /// The row, and arguments that make the run large enough.
    pub caught_by: &'static str,
}

const fn new(feature: &'static str, caught_by: &'static str) -> Sabotage {
    Sabotage { feature, caught_by }
}

/// In the order in which they are tried.
pub const SABOTAGES: &[Sabotage] = &[
    // Ingress, where a readable message is handed to the router: its delivery is acknowledged to the broker at
    // once, before the message is settled. Column: lost.
    new("sabotage-ack-early", "=kill-both"),
    // Target node, where a message that has arrived is looked up among those delivered before: it is always new.
    // Column: repeats.
    new("sabotage-no-dedup", "=duplicates"),
    // Origin, where a target node's answer "not here", or its silence, would send the message on (again, or to the
    // mail): it is settled as delivered instead. Column: lost, told wrong.
    new("sabotage-no-reroute", "=kill-target"),
    // Router, at acceptance from any door: every second message is settled as `offline` (retry: false) and goes
    // nowhere. Column: rejected.
    new("sabotage-reject-some", "=none"),
    // Rendering of the frame for a socket (or, while frames cross the bus, where the message is made at acceptance):
    // every message says `redelivered`. Column: marked.
    new("sabotage-mark-all", "=none"),
    // Target node, between the check for repeats and the hub: every eighth message for a user reaches its sessions
    // 50 ms late, so that newer ones overtake it, unmarked. Column: order.
    new("sabotage-shuffle", "=none"),
    // Origin, where the nodes that hold a target are looked up: only the first of them is used. Column: missed.
    new("sabotage-one-device", "=two-devices"),
    // Target node, between the check for repeats and the hub: what was delivered is delivered once more after 20 s,
    // unmarked. Only the silence at the end of a row is long enough for the last ones. Column: repeats.
    new("sabotage-late-duplicate", "=none"),
    // Broker link, the supervisor of the consuming connection: it ends with the first link instead of opening another
    // one. Column: never, told wrong, or devices that got nothing for 60 s.
    new("sabotage-no-recovery", "=link-cut"),
    // Mail, where a deposit is handed to the broker: every 10,000th one is answered as confirmed and not published.
    // Column: lost.
    new("sabotage-drop-mail", "=mail-many --mails 22000"),
    // Ingress, where the settlement is sent to `reply_to`: it is sent twice. Column: told wrong.
    new("sabotage-settle-twice", "=none"),
];

#[cfg(test)]
#[allow(dead_code, unused_imports)] // The fault suite has a `main` of its own; this runs with the other tests.
mod tests {
    use super::SABOTAGES;

    #[test]
    fn every_feature_that_breaks_something_is_tried() {
        let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
        let features = manifest.lines().filter(|line| line.starts_with("sabotage-"));
        let features: Vec<_> = features.filter_map(|line| line.split_whitespace().next()).collect();
        let tried: Vec<_> = SABOTAGES.iter().map(|one| one.feature).collect();
        assert_eq!(features, tried);
    }
}
