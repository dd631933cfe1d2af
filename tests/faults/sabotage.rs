//! Gateways that are broken on purpose, and the row of the fault table that must show it.
//!
//! All of them are in one build, with the feature `sabotage`; the variable SABOTAGE chooses one. Each is one line or block
//! under `#[cfg(feature = "sabotage")]` with `sabotage::is("…")`, at the one place of the pipeline that its comment here
//! names; `./test faults --sabotage` runs the row of each.

pub struct Sabotage {
    pub name: &'static str,
    /// The row, and arguments that make the run large enough.
    pub caught_by: &'static str,
}

const fn new(name: &'static str, caught_by: &'static str) -> Sabotage {
    Sabotage { name, caught_by }
}

/// In the order in which they are tried.
pub const SABOTAGES: &[Sabotage] = &[
    // Ingress, where a readable message is handed to the router: its delivery is acknowledged to the broker at
    // once, before the message is settled. Column: lost.
    new("ack-early", "=kill-both"),
    // Target node, where a message that has arrived is looked up among those delivered before: it is always new.
    // Column: repeats.
    new("no-dedup", "=duplicates"),
    // Origin, where a target node's answer "not here", or its silence, would send the message on (again, or to the
    // mail): it is settled as delivered instead. Column: lost, told wrong.
    new("no-reroute", "=kill-target"),
    // Router, at acceptance from any door: every second message is settled as `offline` (retry: false) and goes
    // nowhere. Column: rejected.
    new("reject-some", "=none"),
    // Rendering of the frame for a socket (or, while frames cross the bus, where the message is made at acceptance):
    // every message says `redelivered`. Column: marked.
    new("mark-all", "=none"),
    // Target node, between the check for repeats and the hub: every eighth message for a user reaches its sessions
    // 50 ms late, so that newer ones overtake it, unmarked. Column: order.
    new("shuffle", "=none"),
    // Origin, where the nodes that hold a target are looked up: only the first of them is used. Column: missed.
    new("one-device", "=two-devices"),
    // Target node, between the check for repeats and the hub: what was delivered is delivered once more after 20 s,
    // unmarked. Only the silence at the end of a row is long enough for the last ones. Column: repeats.
    new("late-duplicate", "=none"),
    // Broker link, the supervisor of the consuming connection: it ends with the first link instead of opening another
    // one. Column: never, told wrong, or devices that got nothing for 60 s.
    new("no-recovery", "=link-cut"),
    // Mail, where a deposit is handed to the broker: every 10,000th one is answered as confirmed and not published.
    // Column: lost.
    new("drop-mail", "=mail-many --mails 22000"),
    // Ingress, where the settlement is sent to `reply_to`: it is sent twice. Column: told wrong.
    new("settle-twice", "=none"),
];

#[cfg(test)]
#[allow(dead_code, unused_imports)] // The fault suite has a `main` of its own; this runs with the other tests.
mod tests {
    use super::SABOTAGES;

    fn program() -> String {
        let (mut text, mut folders) =
            (String::new(), vec![concat!(env!("CARGO_MANIFEST_DIR"), "/src").into()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir::<std::path::PathBuf>(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => text += &std::fs::read_to_string(&path).unwrap(),
                }
            }
        }
        text
    }

    #[test]
    fn each_is_in_the_program_once() {
        let program = program();
        for one in SABOTAGES {
            let count = program.matches(&format!("sabotage::is(\"{}\")", one.name)).count();
            assert_eq!(count, 1, "{}", one.name);
        }
        assert_eq!(program.matches("sabotage::is(").count(), SABOTAGES.len(), "one is not tried");
    }
}
