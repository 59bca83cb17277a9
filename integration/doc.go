// Package integration is the black-box test suite: real broker processes, real
// connections, and SIGKILL. It holds tests only.
//
// Nouns: a *backend* is the store that a broker runs on, and how to look into
// it afterwards (the audit); every test runs on all of them. A *broker* is one
// process with fixed ports and a data directory, which can be killed and
// started again. A *link* is a connection that sends and reads packets as
// bytes; a *client* is a link that fails its test. A *publisher* and a
// *subscriber* are the two ends of a persistent session: they keep the state
// that the standard asks of a client, over any number of links, and write what
// they see into the *ledger*. The *checker* reads ledger and audit and finds
// what was lost, doubled, reordered or invented.
//
// The suite has its own packet codec, so that it does not agree with the
// broker's by construction.
//
// REWINDMQ_TEST_SCALE sets rounds and sizes: "ci" (default; a fifth of the
// rounds, a tenth of the sizes) or "soak" (all of it). REWINDMQ_TEST_BINARY
// names a broker binary to test in place of the one that is built.
// REWINDMQ_TEST_SEED repeats a run's random choices. REWINDMQ_TEST_STORES names
// the backends to test, comma separated: embedded, mongodb (default: all).
//
// The mongodb backend needs a mongod (see package integration/mongod): without one
// its tests are skipped, and with REWINDMQ_TEST_REQUIRE_MONGO=1 they fail.
// REWINDMQ_TEST_NO_STREAMS=1 switches the change streams of its brokers off: they
// tail by reading the lanes alone, and everything has to pass all the same.
// REWINDMQ_MQTT_SEQUENCES names a folder of raw packet cases.
package integration
