package mongo

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Verify checks a live database against the schema, and changes nothing: it gives
// what differs, a line each, in an order that does not change; none: all is as it
// has to be. It looks at up to sample documents of each of the collections that
// others read, and of the lanes, the newest; 0: 1,000.
func Verify(ctx context.Context, o Options, sample int) ([]string, error) {
	s, err := New(o)
	if err != nil {
		return nil, err
	}
	defer s.disconnect()
	if err := s.dial(); err != nil {
		return nil, err
	}
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if sample == 0 {
		sample = 1000
	}
	v := &verifier{s: s}
	for _, step := range []func(context.Context) error{
		v.format, v.indexes, v.validator,
		func(ctx context.Context) error { return v.documents(ctx, s.c.message, messageFields(), sample) },
		func(ctx context.Context) error {
			return v.documents(ctx, s.c.subscription, subscriptionFields(), sample)
		},
		func(ctx context.Context) error { return v.documents(ctx, s.c.published, recordFields(), sample) },
		func(ctx context.Context) error { return v.documents(ctx, s.c.lane, laneFields(), sample) },
	} {
		if err := step(ctx); err != nil {
			return v.found, err
		}
	}
	return v.found, nil
}

type verifier struct {
	s     *Store
	found []string
}

func (v *verifier) differs(format string, args ...any) {
	v.found = append(v.found, fmt.Sprintf(format, args...))
}

func (v *verifier) format(ctx context.Context) error {
	doc, err := v.s.readFormat(ctx)
	if err == nil && doc.Version != format {
		v.differs("%s: format is %d, want %d", v.s.o.Collections.Meta, doc.Version, format)
	}
	if l := doc.Lost; l != nil {
		v.differs("%s: the log was lost: %s, as node %s found on %s", v.s.o.Collections.Meta, l.Why, l.Node, l.At.UTC().Format(time.RFC3339))
	}
	return err
}

// indexSpec is an index as the server lists it.
type indexSpec struct {
	Name    string   `bson:"name"`
	Key     bson.D   `bson:"key"`
	Unique  bool     `bson:"unique"`
	Partial bson.Raw `bson:"partialFilterExpression"`
	TTL     *int64   `bson:"expireAfterSeconds"`
}

// indexes compares keys, uniqueness, partial filters and TTLs by name.
func (v *verifier) indexes(ctx context.Context) error {
	for _, x := range v.s.indexes() {
		cur, err := x.coll.Indexes().List(ctx)
		if err != nil {
			return fmt.Errorf("mongo: indexes of %s: %w", x.coll.Name(), err)
		}
		var list []indexSpec
		if err := cur.All(ctx, &list); err != nil {
			return fmt.Errorf("mongo: indexes of %s: %w", x.coll.Name(), err)
		}
		where := x.coll.Name() + "." + x.name
		i := slices.IndexFunc(list, func(l indexSpec) bool { return l.Name == x.name })
		if x.ttl < 0 {
			if i >= 0 {
				v.differs("index %s: there, though messages are kept for ever", where)
			}
			continue
		}
		if i < 0 {
			v.differs("index %s: missing", where)
			continue
		}
		l := list[i]
		if fmt.Sprint(keysOf(l.Key)) != fmt.Sprint(keysOf(x.keys)) {
			v.differs("index %s: keys %v, want %v", where, keysOf(l.Key), keysOf(x.keys))
		}
		if l.Unique != x.unique {
			v.differs("index %s: unique is %v, want %v", where, l.Unique, x.unique)
		}
		if (l.Partial != nil) != (x.partial != nil) {
			v.differs("index %s: its partial filter is %v", where, l.Partial)
		}
		if x.ttl > 0 && (l.TTL == nil || *l.TTL != int64(x.ttl/time.Second)) {
			v.differs("index %s: TTL differs, want %d s", where, int64(x.ttl/time.Second))
		}
	}
	return nil
}

func keysOf(d bson.D) []string {
	out := make([]string, len(d))
	for i, e := range d {
		out[i] = e.Key
	}
	return out
}

func (v *verifier) validator(ctx context.Context) error {
	name := v.s.o.Collections.Message
	list, err := v.s.db.ListCollectionSpecifications(ctx, fields("name", name))
	if err != nil {
		return fmt.Errorf("mongo: options of %s: %w", name, err)
	}
	if len(list) == 0 {
		v.differs("collection %s: missing", name)
		return nil
	}
	if _, err := list[0].Options.LookupErr("validator"); err != nil {
		v.differs("collection %s: has no validator", name)
	}
	return nil
}

// field is one of a collection's fields: the types it may have.
type field struct {
	name     string
	required bool
	types    []bson.Type
}

func messageFields() []field {
	return []field{
		{"_id", true, []bson.Type{bson.TypeObjectID}},
		{"topic", true, []bson.Type{bson.TypeString}},
		{"data", true, []bson.Type{bson.TypeString, bson.TypeBinary}},
		{"clientId", false, []bson.Type{bson.TypeString}},
		{"qos", false, []bson.Type{bson.TypeInt32, bson.TypeInt64, bson.TypeDouble}},
		{"retain", false, []bson.Type{bson.TypeBoolean}},
		{"created", false, []bson.Type{bson.TypeDateTime}},
		{"host", false, []bson.Type{bson.TypeString}},
		{"lane", false, []bson.Type{bson.TypeInt64}},
		{"n", false, []bson.Type{bson.TypeInt64}},
		{"ts", false, []bson.Type{bson.TypeTimestamp}},
		{"expiry", false, []bson.Type{bson.TypeDateTime}},
		{"properties", false, []bson.Type{bson.TypeEmbeddedDocument}},
	}
}

func subscriptionFields() []field {
	return []field{
		{"_id", true, []bson.Type{bson.TypeObjectID}},
		{"topic", true, []bson.Type{bson.TypeString}},
		{"clientId", true, []bson.Type{bson.TypeString}},
		{"wildcard", false, []bson.Type{bson.TypeString}},
		{"qos", true, []bson.Type{bson.TypeInt32, bson.TypeInt64, bson.TypeDouble}},
		{"created", true, []bson.Type{bson.TypeDateTime}},
		{"sid", false, []bson.Type{bson.TypeInt64}},
		{"epoch", false, []bson.Type{bson.TypeInt64}},
		{"group", false, []bson.Type{bson.TypeString}},
	}
}

func recordFields() []field {
	return []field{
		{"_id", true, []bson.Type{bson.TypeObjectID}},
		{"clientId", true, []bson.Type{bson.TypeString}},
		{"topic", false, []bson.Type{bson.TypeString}}, // a fence has none
		{"messageId", false, []bson.Type{bson.TypeObjectID}},
		{"host", true, []bson.Type{bson.TypeString}},
		{"created", true, []bson.Type{bson.TypeDateTime}},
		{"group", false, []bson.Type{bson.TypeString}},
		{"left", false, []bson.Type{bson.TypeString}},
	}
}

func laneFields() []field {
	return []field{
		{"_id", true, []bson.Type{bson.TypeInt64}},
		{"key", true, []bson.Type{bson.TypeInt64}},
		{"node", true, []bson.Type{bson.TypeObjectID}},
		{"adopts", false, []bson.Type{bson.TypeBoolean}},
		{"opened", false, []bson.Type{bson.TypeTimestamp}},
		{"retired", false, []bson.Type{bson.TypeBoolean}},
		{"last", false, []bson.Type{bson.TypeInt64}},
		{"top", false, []bson.Type{bson.TypeInt64}},
	}
}

// documents looks at the newest documents of a collection.
func (v *verifier) documents(ctx context.Context, c *mongo.Collection, want []field, sample int) error {
	cur, err := c.Find(ctx, bson.D{}, options.Find().SetSort(fields("_id", -1)).SetLimit(int64(sample)))
	if err != nil {
		return fmt.Errorf("mongo: documents of %s: %w", c.Name(), err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	for cur.Next(ctx) {
		id := cur.Current.Lookup("_id")
		for _, f := range want {
			val, err := cur.Current.LookupErr(f.name)
			switch {
			case err != nil && f.required:
				v.differs("%s %v: no %s", c.Name(), id, f.name)
			case err == nil && !slices.Contains(f.types, val.Type):
				v.differs("%s %v: %s is a %v", c.Name(), id, f.name, val.Type)
			}
		}
	}
	return cur.Err()
}
