//! Where a message goes: pure decisions behind one enum, [`Routing`].

use smallvec::SmallVec;

use crate::config::Routing;
use crate::directory::Home;
use crate::ids::{NodeId, UserId};
use crate::protocol::target::Target;

pub type Nodes = SmallVec<[NodeId; 2]>;

/// What a strategy may ask.
pub trait Lookup {
    fn this_node(&self) -> &NodeId;
    fn user_is_here(&self, user: &UserId) -> bool;
    /// Other live nodes that are believed to hold the user.
    fn nodes_of(&self, user: &UserId) -> Nodes;
    /// With the ring: which node knows where the user is.
    fn home_of(&self, user: &UserId) -> Home;
    /// All other live nodes.
    fn live_nodes(&self) -> Nodes;
    fn is_live(&self, node: &NodeId) -> bool;
}

/// Where a message for one target may be sent now. Nowhere: nobody is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// To these nodes, which answer with receipts; this node may be one of them.
    pub nodes: Nodes,
    /// Besides to this node, which passes it on to those that have the target, and says which these are.
    pub relay: Option<NodeId>,
}

impl Ways {
    pub fn are_none(&self) -> bool {
        self.nodes.is_empty() && self.relay.is_none()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Ways(Ways),
    /// To every node, for whoever is connected.
    Everyone,
    /// This version cannot carry such a target.
    Unsupported,
}

fn to(nodes: Nodes) -> Route {
    Route::Ways(Ways { nodes, relay: None })
}

/// This node too, whether or not the user is here: what it says then is as new as what the others say.
fn everyone(lookup: &impl Lookup) -> Nodes {
    let mut nodes = lookup.live_nodes();
    nodes.push(lookup.this_node().clone());
    nodes
}

/// Decides by the strategy that `WARREN_ROUTING` names. `again`: somebody did not answer an earlier attempt.
pub fn route(strategy: Routing, target: &Target, again: bool, lookup: &impl Lookup) -> Route {
    match (strategy, target) {
        (_, Target::Broadcast) => Route::Everyone,
        (_, Target::Channel(_) | Target::App(_)) => Route::Unsupported,
        (_, Target::Session(session)) => {
            let reachable = session.node == *lookup.this_node() || lookup.is_live(&session.node);
            to(reachable.then(|| session.node.clone()).into_iter().collect())
        }
        (Routing::Directory, Target::User(user)) => {
            let mut nodes = lookup.nodes_of(user);
            if lookup.user_is_here(user) {
                nodes.push(lookup.this_node().clone());
            }
            to(nodes)
        }
        (Routing::Broadcast, Target::User(_)) => to(everyone(lookup)),
        // What the home says is not relied on twice.
        (Routing::Ring, Target::User(_)) if again => to(everyone(lookup)),
        (Routing::Ring, Target::User(user)) => match lookup.home_of(user) {
            Home::Unsure => to(everyone(lookup)),
            Home::Holders(mut nodes) => {
                if lookup.user_is_here(user) {
                    nodes.push(lookup.this_node().clone());
                }
                to(nodes)
            }
            Home::At(home) => {
                let here = lookup.user_is_here(user).then(|| lookup.this_node().clone());
                Route::Ways(Ways { nodes: here.into_iter().collect(), relay: Some(home) })
            }
        },
    }
}

/// Below so many other nodes a message for several of them always names those that it is for.
const FANOUT_NODES_MIN: usize = 8;

/// Which other nodes get a message that is for several of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spread {
    Nobody,
    Nodes(Nodes),
    /// The fanout exchange.
    Everyone,
}

/// `interested`: the nodes with a subscriber, of `peers` other live nodes. Naming them costs the broker a look-up for
/// each, which the fanout saves when at least three of four are interested. `is_sure`: whether this node knows of every
/// subscription that was confirmed; if not, everyone gets it.
pub fn spread(interested: Nodes, peers: usize, is_sure: bool) -> Spread {
    if !is_sure || interested.len() >= FANOUT_NODES_MIN && interested.len() * 4 >= peers * 3 {
        return Spread::Everyone;
    }
    match interested.is_empty() {
        true => Spread::Nobody,
        false => Spread::Nodes(interested),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    struct World {
        this: NodeId,
        here: bool,
        others: Nodes,
        live: Nodes,
        home: Home,
    }

    impl Lookup for World {
        fn this_node(&self) -> &NodeId {
            &self.this
        }
        fn user_is_here(&self, _: &UserId) -> bool {
            self.here
        }
        fn nodes_of(&self, _: &UserId) -> Nodes {
            self.others.clone()
        }
        fn home_of(&self, _: &UserId) -> Home {
            self.home.clone()
        }
        fn live_nodes(&self) -> Nodes {
            self.live.clone()
        }
        fn is_live(&self, node: &NodeId) -> bool {
            self.live.contains(node)
        }
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn targets_go_where_they_are() {
        let live = smallvec![node("b"), node("d")];
        let world =
            World { this: node("a"), here: true, others: smallvec![node("b")], live, home: Home::Unsure };
        let route =
            |target: &str| super::route(Routing::Directory, &Target::parse(target).unwrap(), false, &world);
        assert_eq!(route("broadcast"), Route::Everyone);
        assert_eq!(route("user.1"), to(smallvec![node("b"), node("a")]));
        assert_eq!(route("session.a~1"), to(smallvec![node("a")]));
        assert_eq!(route("session.b~1"), to(smallvec![node("b")]));
        assert_eq!(route("session.c~1"), to(smallvec![]));
        assert_eq!(route("channel.x"), Route::Unsupported);
    }

    #[test]
    fn broadcast_asks_every_live_node_about_a_user_and_nobody_else_about_the_rest() {
        for here in [false, true] {
            let live: Nodes = smallvec![node("b"), node("d")];
            let world = World { this: node("a"), here, others: smallvec![], live, home: Home::Unsure };
            let route = |target: &str| {
                super::route(Routing::Broadcast, &Target::parse(target).unwrap(), false, &world)
            };
            assert_eq!(route("user.1"), to(smallvec![node("b"), node("d"), node("a")]));
            assert_eq!(route("session.b~1"), to(smallvec![node("b")]));
            assert_eq!(route("session.c~1"), to(smallvec![]));
            assert_eq!(route("broadcast"), Route::Everyone);
        }
    }

    #[test]
    fn the_ring_asks_the_home_and_everyone_when_it_is_not_sure() {
        let target = Target::parse("user.1").unwrap();
        let route = |here, home: &Home, again| {
            let live: Nodes = smallvec![node("b"), node("d")];
            let world = World { this: node("a"), here, others: smallvec![], live, home: home.clone() };
            super::route(Routing::Ring, &target, again, &world)
        };
        let all = || to(smallvec![node("b"), node("d"), node("a")]);
        let (elsewhere, known) = (Home::At(node("d")), Home::Holders(smallvec![node("b")]));
        let relayed = |nodes| Route::Ways(Ways { nodes, relay: Some(node("d")) });
        assert_eq!(route(false, &elsewhere, false), relayed(smallvec![]));
        assert_eq!(
            route(true, &elsewhere, false),
            relayed(smallvec![node("a")]),
            "what is here needs no other node"
        );
        assert_eq!(route(false, &known, false), to(smallvec![node("b")]));
        assert_eq!(route(true, &known, false), to(smallvec![node("b"), node("a")]));
        assert_eq!(route(false, &Home::Holders(smallvec![]), false), to(smallvec![]), "nobody is there");
        assert_eq!(route(false, &Home::Unsure, false), all());
        for home in [elsewhere, known] {
            assert_eq!(route(false, &home, true), all(), "somebody did not answer");
        }
    }

    #[test]
    fn a_channel_goes_to_those_who_are_interested_and_to_all_when_most_are() {
        let nodes = |count: usize| (0..count).map(|n| node(&format!("n{n}"))).collect::<Nodes>();
        assert_eq!(spread(nodes(0), 9, true), Spread::Nobody);
        assert_eq!(spread(nodes(0), 0, false), Spread::Everyone);
        for (interested, peers) in [(2, 2), (7, 7), (8, 11), (9, 13)] {
            assert_eq!(spread(nodes(interested), peers, true), Spread::Nodes(nodes(interested)));
        }
        for (interested, peers) in [(8, 8), (8, 10), (9, 12)] {
            assert_eq!(spread(nodes(interested), peers, true), Spread::Everyone, "{interested} of {peers}");
        }
    }
}
