// Package wire turns bytes into MQTT packets and back, and listens for connections.
//
// # Nouns
//
//   - [Reader]: takes the packets of one peer from a byte stream, strictly, for MQTT 3.1, 3.1.1 and 5.0.
//   - [Packet]: what it returns: [*Connect], [*Publish], [*Ack], [*Subscribe], [*Unsubscribe], [*Pingreq], [*Disconnect],
//     [*Auth], and on the client side [*Connack], [*Suback], [*Unsuback], [*Pingresp].
//   - [Error]: what the peer did wrong, with the reason code for its DISCONNECT or CONNACK.
//   - Append functions: encode a packet at the end of a byte slice that the caller owns. They do no I/O.
//   - [Listener]: accepts TCP or WebSocket connections and hands each to a function.
//
// # Invariants
//
//   - No input makes this package panic, and what it allocates is bounded by the bytes that have really arrived, not by
//     those that are announced: a header that promises 8 MiB costs 4 KiB. Bytes become at most four times as many, or
//     some fifteen times in a packet of nothing but empty user properties.
//   - A packet that is returned is well-formed: every rule of the standard that can be judged from the packet alone, and
//     from the version of the connection, has been checked. What needs a session, a topic alias table, or a policy
//     is left to the caller, and so is whether a topic filter is valid (SUBACK answers that for each filter).
//   - A Reader takes no byte from its source beyond what one call of Read returns, and parses none behind an error:
//     the first error is final.
//   - What has been decoded can be encoded again, and decodes to the same.
//
// # Why own decoding beside mochi's codec
//
// github.com/mochi-mqtt/server/v2/packets knows the formats, and its encoder writes CONNACK, SUBACK, UNSUBACK,
// DISCONNECT, SUBSCRIBE, UNSUBSCRIBE and AUTH here (codec.go); tests decode with it what this package encodes, and the
// other way round. Its decoder is not used. It panics on truncated input, takes duplicated, truncated and empty
// properties, reserved option bits, retain handling 3, payload format 2, empty filters and trailing bytes, loses
// the reason code of a DISCONNECT of length 1, refuses wills without payload, and copies a PUBLISH twice. To contain that,
// every packet would have to be parsed a second time; parsing it once is less code, and the hot path (PUBLISH, the acks,
// PINGREQ) then costs one allocation or none.
// CONNECT, PUBLISH and the acks are encoded here too: the first because mochi leaves out values that are present and
// zero, the others for speed.
//
// # Which code for which fault
//
// The standard names a reason code for few of its rules. Where it does so in a numbered statement, that code is used;
// for the rest, what test suites of the field expect: 0x81 for what cannot be parsed, 0x82 for what contradicts itself.
// The places where these differ from a sentence of the standard say so.
//
// # Why own listeners
//
// mochi's TCP listener ends for good on any Accept error (one EMFILE, and nobody connects until a restart), closes no
// connection that is still being accepted, and its WebSocket listener binds only when it serves, has fixed deadlines of
// 60 s in the HTTP server and leaves a text frame's connection open. The accept loop is short, so it is ours: errors are
// waited out with a back-off. WebSocket frames are gorilla/websocket's (as mochi's are): with coder/websocket a read
// deadline that passes closes the connection, and a broker that has to say DISCONNECT 0x8D after it could not.
// There is no http.Server: it keeps goroutines that nobody waits for, and 8 KiB of buffers for each connection.
//
// # Goroutines
//
// Only [Listener.Run] starts any: one that closes the socket when the context is done, and one for each
// connection, in which accept is called. Run waits for all of them. A Reader and the Append functions start none.
package wire
