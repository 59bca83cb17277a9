// Package store is the contract between the broker and its log. It holds small
// interfaces with their promises, the sentinel errors, and the metrics that
// every store feeds; store/storetest is the contract as a test suite, with a
// small in-memory store beside it; store/embedded and store/mongo keep it.
//
// # What every store promises
//
//  1. Durable: Append answers for each message: stored at a mark (it survives
//     this process; on MongoDB also a minority of members), refused (certainly
//     not stored), or in doubt. Tail and Read yield only what is durable in this
//     sense.
//  2. Idempotent: appending the same ID again is one message, wherever it comes
//     from; the answer is the mark of the first.
//  3. Ordered: Tail(after) yields every message after the cursor, each once, n
//     ascending in each lane and each publisher's in publishing order. Losing
//     its source and coming back is its own affair.
//  4. Exact: Read(after, upTo, filters), with upTo a cursor that Tail has reached
//     or Head has returned, yields the matching messages after `after` and not
//     after `upTo`: all of them, none else, each once, n ascending in each lane
//     and each publisher's in publishing order.
//  5. Head: every append that returned before the call is not after it, every
//     append that starts after the return is.
//  6. Fenced: writes of a session carry its Owner; once Claim has returned, a
//     write of an older epoch changes nothing that counts, and says so.
//
// # Who owns what
//
// Lanes, queues, batches, doubt and numbering belong to the store: the broker
// sees a lane only inside a mark. Messages and their byte slices are shared and
// never changed after Append. Cursors that a store hands out are the caller's to
// read; it clones them before it changes them. All methods are safe for
// concurrent use unless said otherwise.
package store
