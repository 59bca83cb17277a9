package integration

import "testing"

func embeddedBackend() backend {
	return backend{
		name: "embedded",
		place: func(_ *testing.T, dir string) place {
			return place{
				dir:       dir,
				args:      []string{"--data", dir},
				audit:     func(t *testing.T) audit { t.Helper(); return auditEmbedded(t, dir) },
				makeNewer: func(t *testing.T) { t.Helper(); makeEmbeddedNewer(t, dir) },
			}
		},
	}
}
