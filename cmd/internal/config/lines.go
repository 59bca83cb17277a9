package config

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// keyLines returns the line of each key path in a YAML text, so that an error can name it.
func keyLines(text []byte) (map[string]int, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	lines := map[string]int{}
	for _, root := range doc.Content {
		walk(root, "", lines)
	}
	return lines, nil
}

func walk(n *yaml.Node, prefix string, lines map[string]int) {
	if n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		path := prefix + strings.TrimSpace(n.Content[i].Value)
		lines[path] = n.Content[i].Line
		walk(n.Content[i+1], path+".", lines)
	}
}
