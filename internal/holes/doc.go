// Package holes keeps the table of holes in docs/RELIABILITY.md true. It has no code
// of its own to use.
//
// Nouns: a hole is an interleaving in which a plausible design loses, doubles or
// reorders a message; its id is a letter and a number. A row of the table names the
// tests of one. A test is a function, a rule of a simulation (a subtest of
// TestRuleIsNeeded, named after its hole and the rule), or a check of the contract
// suite.
package holes
