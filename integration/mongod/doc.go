// Package mongod starts and stops throw-away MongoDB replica sets for tests.
//
// Nouns: a *set* is a replica set of one or three members on the loopback
// interface; a *member* is one mongod process of it, which can be killed,
// stopped (SIGSTOP) and started again over the same data.
//
// The binary is the one named by REWINDMQ_TEST_MONGOD, else `mongod` on the PATH,
// else the one in the project's cache, `.cache/mongod/mongod`, which the program
// in fetch fills. Where there is none, Need skips the test; with
// REWINDMQ_TEST_REQUIRE_MONGO=1 it fails it.
//
// Every process is owned by its Set and waited for by Stop; on Linux the kernel
// kills it when the test process dies.
package mongod
