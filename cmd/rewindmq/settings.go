package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
)

// settings are the flags through which a command gets the broker's configuration.
type settings struct {
	file string
	set  []string
	dev  bool
}

// flagPaths maps flags to the settings that they set.
func flagPaths() map[string]string {
	return map[string]string{
		"listen": "listen", "http": "http.addr", "data": "store.data", "store": "store.url", "node": "node.name",
	}
}

// add defines the flags on cmd.
func (s *settings) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&s.file, "config", "c", "", "configuration `file` (YAML); also REWINDMQ_CONFIG")
	f.StringArrayVar(&s.set, "set", nil, "set any setting, as `key=value`; repeatable")
	f.BoolVar(&s.dev, "dev", false, "listen on 127.0.0.1 only, for trying things out")
	f.StringArray("listen", nil, "MQTT listener `address`, tcp://host:port or ws://host:port/path; repeatable")
	f.String("http", "", "`address` of /metrics, /livez, /readyz and /api, or off")
	f.String("data", "", "`directory` of the embedded log")
	f.String("store", "", "store `address`: embedded, or mongodb://…")
	f.String("node", "", "`name` of this broker")
}

// load reads the configuration for cmd.
func (s *settings) load(cmd *cobra.Command) (*config.Loaded, error) {
	loaded, err := config.Load(config.Sources{
		File: s.file, Env: os.Environ(), Flags: cmd.Flags(), FlagPaths: flagPaths(), Set: s.set, Dev: s.dev,
	})
	if err != nil {
		return nil, exit.With(exit.Config, errors.Join(errConfig, err))
	}
	return loaded, nil
}

var errConfig = errors.New("the configuration is wrong")
