// Package field keeps the table of field reports in docs/RELIABILITY.md true. It has no
// code of its own to use.
//
// Nouns: a field report is a scenario from public reports about other brokers; its id is
// F and two digits. A row of the table names the tests of one. A test is a function whose
// name begins with TestF and the digits.
package field
