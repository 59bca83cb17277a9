package mongo

import (
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
)

// The decisions about sessions are made by the server, in one operation, by its
// clock: these are the expressions of its update pipelines.

// ex is one operator with its arguments.
func ex(op string, args ...any) bson.D {
	if len(args) == 1 {
		return bson.D{{Key: op, Value: args[0]}}
	}
	return bson.D{{Key: op, Value: bson.A(args)}}
}

// fields is a document of expressions, from pairs of key and value.
func fields(kv ...any) bson.D {
	d := make(bson.D, 0, len(kv)/2)
	for i := 0; i+1 < len(kv); i += 2 {
		d = append(d, bson.E{Key: kv[i].(string), Value: kv[i+1]})
	}
	return d
}

func set(kv ...any) bson.D { return bson.D{{Key: "$set", Value: fields(kv...)}} }

func unset(names ...string) bson.D { return bson.D{{Key: "$unset", Value: names}} }

func absent(v any) bson.D { return ex("$eq", ex("$ifNull", v, nil), nil) }

// now is the server's clock.
func (s *Store) now() any {
	if c := s.o.clock; c != nil {
		return c.expression()
	}
	return "$$NOW"
}

// testClock is a clock that hardly moves by itself, for tests.
type testClock struct {
	base  time.Time
	ahead atomic.Int64 // nanoseconds
}

const testClockSlow = 100

func (c *testClock) expression() bson.D {
	return ex("$add", c.base.Add(time.Duration(c.ahead.Load())), ex("$divide", ex("$subtract", "$$NOW", c.base), testClockSlow))
}

// at is what the expression gives at a time of the server's; not less, however the
// server rounds.
func (c *testClock) at(now time.Time) time.Time {
	return c.base.Add(time.Duration(c.ahead.Load()) + now.Sub(c.base)/testClockSlow + time.Millisecond)
}

func seconds(v any) bson.D { return ex("$multiply", v, 1000) }

// sessionEnd is when the time of a session without a connection is over; null:
// never, or it has one.
func sessionEnd() bson.D {
	return ex("$cond",
		ex("$or", absent("$disconnected"), ex("$eq", "$expiry", int64(schema.NoExpiry))),
		nil, ex("$add", "$disconnected", seconds("$expiry")))
}

// mapWills applies an expression on $$w to every will; null takes it out.
func mapWills(in any, each any) bson.D {
	return ex("$filter", fields(
		"input", ex("$map", fields("input", ex("$ifNull", in, bson.A{}), "as", "w", "in", each)),
		"as", "kept", "cond", ex("$ne", "$$kept", nil)))
}

// dueAt decides a will: it fell due at its own time, or at the time given if that
// was earlier.
func dueAt(at any) bson.D {
	return ex("$mergeObjects", "$$w", fields("due", true, "at", ex("$min", ex("$ifNull", "$$w.at", at), at)))
}

// branch is one case of a switch.
func branch(cond, then any) bson.D { return fields("case", cond, "then", then) }

func choose(otherwise any, branches ...any) bson.D {
	return ex("$switch", fields("branches", bson.A(branches), "default", otherwise))
}

// decideAtClaim judges the wills of former connections when their client is back,
// at $connected: due, or taken out by a return before the delay while the session
// lives.
func decideAtClaim(epoch int64) bson.D {
	return mapWills("$wills", choose(nil,
		branch(ex("$or", ex("$gte", "$$w.epoch", epoch), "$$w.due"), "$$w"),
		branch(ex("$not", absent("$$w.end")), dueAt("$$w.end")),
		branch(ex("$or", ex("$eq", "$$w.delay", 0),
			ex("$and", ex("$not", absent("$$w.at")), ex("$lte", "$$w.at", "$connected"))), dueAt("$connected")),
	))
}

// decideWithout judges the wills of a session without a connection: due when the
// delay is over, or the session has ended. tmp.now and tmp.end have been set.
func decideWithout() bson.D {
	return mapWills("$wills", choose("$$w",
		branch(ex("$or", "$$w.due", absent("$$w.at")), "$$w"),
		branch(ex("$not", absent("$$w.end")), dueAt("$$w.end")),
		branch(ex("$and", ex("$ne", "$tmp.end", nil), ex("$lte", "$tmp.end", "$tmp.now")), dueAt("$tmp.end")),
		branch(ex("$lte", "$$w.at", "$tmp.now"), dueAt("$$w.at")),
	))
}

// wake computes when the keeper has to look at a session without a connection.
func wake() bson.D {
	return ex("$cond", absent("$owner"),
		ex("$ifNull", ex("$min", bson.A{
			ex("$min", ex("$map", fields("input", "$wills", "as", "w", "in", ex("$ifNull", "$$w.at", "$tmp.now")))),
			sessionEnd(),
		}), "$$REMOVE"),
		"$$REMOVE")
}
