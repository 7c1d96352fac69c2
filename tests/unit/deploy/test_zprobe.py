def test_probe(talking):
    for party in ("kitchen", "hall", "server", "study"):
        print("PROBE answers", party, len(set(talking.said[party].values())), [len(a.split()) for a in talking.said[party].values()])
