// Package conformance makes docs/CONFORMANCE.md: where the normative statements of
// MQTT 3.1.1 and 5.0 that concern a server are obeyed, and which tests show it. It
// has no code of its own to use.
//
// Nouns: a statement is one [MQTT-x.y.z-n] of a version, in statements5.tsv or
// statements311.tsv, in words of our own. A citation is its id in a comment, beside
// the code that obeys it or the test that shows it. A choice is what the broker
// does where the standard leaves freedom, in choices.md.
//
// A citation stands in brackets and means MQTT 5.0, unless "of 3.1.1" follows. One
// pair of brackets may hold several: with commas, with "to" for a range, and with
// "3.1.1:" before those of 3.1.1. An id that only 3.1.1 has needs no mark. A
// statement of 3.1.1 that says the same as one of 5.0 shares its citations.
package conformance
