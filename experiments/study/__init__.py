"""The study: is one dual-precision network as good as two trained apart?"""
