// Package broker is the MQTT server: connections, sessions, acknowledgements,
// wills, retained messages. It is the only package that knows both the protocol
// and the store. What a session decides is in broker/session; this package
// carries the decisions out.
//
// # Nouns
//
// A conn is one network connection: it reads packets and holds the outbox of
// bytes to send. A client is a session while a connection owns it: the state
// machine of broker/session behind a lock, and the carrying out of its actions.
// A lane is a worker that hands what is waiting to the store in one batch: 4
// record lanes, 4 writer lanes, one for claims. The roster knows which client
// ids are owned here. The projection holds the retained messages. A share is a
// group of shared subscriptions with a member online here: the state machine of
// broker/group behind a lock. It is fed by hub and replay as a client is, and hands
// each message to one of its members.
//
// # A publish and a delivery
//
// conn.run reads a packet, client.onPublish gives it to the session, which leaves
// DoAppend; the store's committer calls back, and only then the session leaves
// SendAck. Nothing is fanned out there: the hub tails the log, offers each message
// to the sessions whose filters match, they leave DoRecord, and when the record is
// committed SendPublish.
//
// # Goroutines and their owners
//
// Broker.Run starts the hub, the lanes, the keeper, the ticker and the projection's
// saver, and waits for them. Each connection has one goroutine, the listener's,
// which runs Broker.Serve. A share has one while a member is online here. That and the
// short-lived ones (an outbox that has something to write, a replay, deferred calls to
// hub and store) are counted in Broker.tasks, which Run waits for.
//
// # Locks
//
// The order is: shares.mu, then hub, then share.mu, then client.mu, then outbox.mu. A
// client calls neither hub nor the store's waiting methods while it holds its lock: such
// actions are deferred to client.later, which runs them in order without it. Nor does it
// call a share: what became of a claim it leaves as a note (share.notesMu, the last of
// all), how much room it has in an atomic.
package broker
