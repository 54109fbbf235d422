// Package deploy decides over the life of models in a fleet: which versions of a model are loaded, which of them takes
// which share of the requests, when a new version replaces the one before or is rolled back, and which models are
// unloaded because nobody uses them or because others need the memory.
//
// A Deployment is a name that clients use, with the versions behind it. A version is a model by its digest. The State
// has all deployments; routers share it as a document in the registry and change it by compare-and-swap.
//
//   - An operator adds and removes versions: State.Deploy and State.Undeploy.
//   - The router that places layers calls Keeper.Step about once per second with what it sees of the fleet.
//   - Any router may roll a version back whose requests fail (Judge says when) and wake a deployment that sleeps:
//     State.RollBack and State.Wake.
//   - Every router asks Deployment.Route which version a request goes to. A request stays on its version until its end.
//   - The placer loads what State.Places says. What a version needs to be loaded, opened and probed is
//     decided elsewhere.
//
// A version goes through these states:
//
//	loading:  it is loaded beside the live one, and tokens are sent through every stage; it takes no request
//	canary:   it takes a share of the requests for a while
//	live:     it takes all requests, or all but the canary's
//	retiring: it takes no new request and is unloaded when the last one has ended
//
// A version that cannot be loaded or probed, or whose requests fail more often than those of the live one, goes from
// loading or canary to retiring, and the live one takes all requests as before.
//
// All functions are pure: no clock, no I/O. A Keeper remembers only times, so a router that takes over begins to count
// anew, which unloads later, never earlier. Only when a canary has begun is in the State, so that it does not last
// longer for a router that takes over.
package deploy
