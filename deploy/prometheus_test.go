package deploy

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type alert struct {
	Name        string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Annotations map[string]string `yaml:"annotations"`
	Labels      map[string]string `yaml:"labels"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "deploy/prometheus/rules.yml")), &file); err != nil {
		t.Fatal(err)
	}
	var list []alert
	for _, g := range file.Groups {
		list = append(list, g.Rules...)
	}
	return list
}

var (
	metricName  = regexp.MustCompile(`\brewindmq_[a-z0-9_]+`)
	metricRow   = regexp.MustCompile("(?m)^\\| `(rewindmq_[a-z0-9_]+)` \\| ([a-z]+) \\| ([a-z_, ]*) \\|")
	labelsOf    = regexp.MustCompile(`\b(rewindmq_[a-z0-9_]+)\{([^}]*)\}`)
	labelInside = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
)

// unknownMetrics gives what an expression asks for and docs/METRICS.md does not have: metrics, and labels of metrics.
func unknownMetrics(expr, document string) []string {
	kinds, labels := map[string]string{}, map[string]string{}
	for _, m := range metricRow.FindAllStringSubmatch(document, -1) {
		kinds[m[1]], labels[m[1]] = m[2], m[3]
	}
	known := func(name string) string {
		if _, ok := kinds[name]; ok {
			return name
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, cut := strings.CutSuffix(name, suffix); cut && kinds[base] == "histogram" {
				return base
			}
		}
		return ""
	}
	var unknown []string
	for _, name := range metricName.FindAllString(expr, -1) {
		if known(name) == "" {
			unknown = append(unknown, name)
		}
	}
	for _, m := range labelsOf.FindAllStringSubmatch(expr, -1) {
		for _, l := range labelInside.FindAllStringSubmatch(m[2], -1) {
			if base := known(m[1]); base != "" && !strings.Contains(", "+labels[base]+",", ", "+l[1]+",") {
				unknown = append(unknown, m[1]+"{"+l[1]+"}")
			}
		}
	}
	return unknown
}

// Every metric of the rules is one that the program has, and every alert has a place in docs/operations.md.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	list := alerts(t)
	document, runbook := read(t, "docs/METRICS.md"), read(t, "docs/operations.md")
	seen := map[string]bool{}
	for _, a := range list {
		seen[a.Name] = true
		for _, u := range unknownMetrics(a.Expr, document) {
			t.Errorf("%s: %s is not in docs/METRICS.md", a.Name, u)
		}
		if !metricName.MatchString(a.Expr) && !strings.HasPrefix(a.Expr, `up{job="rewindmq"}`) {
			t.Errorf("%s asks for no metric of ours: %s", a.Name, a.Expr)
		}
		if a.Labels["severity"] != "critical" && a.Labels["severity"] != "warning" {
			t.Errorf("%s: severity %q", a.Name, a.Labels["severity"])
		}
		if want := "docs/operations.md#" + strings.ToLower(a.Name); a.Annotations["runbook"] != want || a.Annotations["summary"] == "" {
			t.Errorf("%s: annotations %v", a.Name, a.Annotations)
		}
		if !regexp.MustCompile(`(?m)^#+ ` + a.Name + `$`).MatchString(runbook) {
			t.Errorf("docs/operations.md has no heading %s", a.Name)
		}
	}
	for _, want := range []string{"MessageLoss", "NodeDown", "StoreDown", "PublishAckSlow", "DropsQoS"} {
		if !seen[want] {
			t.Errorf("there is no alert %s", want)
		}
	}
}

// A metric and a label that do not exist are noticed.
func TestAlertRulesNotice(t *testing.T) {
	t.Parallel()
	document := read(t, "docs/METRICS.md")
	for expr, want := range map[string]string{
		`rate(rewindmq_store_eror_total[5m])`:                              "rewindmq_store_eror_total",
		`rewindmq_store_up_bucket`:                                         "rewindmq_store_up_bucket",
		`rewindmq_publish_ack_duration_seconds_bucket{qos="1",node="a"}`:   "rewindmq_publish_ack_duration_seconds_bucket{node}",
		`rewindmq_publish_ack_duration_seconds_bucket{qos=~"1|2"}`:         "",
		`sum by (op) (rewindmq_store_errors_total{kind!="duplicate_key"})`: "",
	} {
		if got := strings.Join(unknownMetrics(expr, document), " "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// Prometheus's own tool accepts the files, and the rules fire in its unit tests.
func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool on the PATH (Debian: prometheus)")
	}
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"test", "rules", "rules_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = filepath.Join(root, "deploy", "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}
