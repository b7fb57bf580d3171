"""The course around its lessons: their list, the glossary, web pages, checks of the machine."""
