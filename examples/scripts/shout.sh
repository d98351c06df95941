# Reads {"text": ...} and answers with it in capitals, as a JSON text on the last line.
python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["text"].upper()))'
