//go:build race

package wire

const raceEnabled = true // memory figures mean nothing then
